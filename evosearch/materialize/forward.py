"""Comparison of config.json files by the keys that affect a model's answers.

Configs are compared as transformers reads them: an older key and its successor (`rope_theta`, `rope_parameters`) are
equal, and a missing key has its default.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import transformers

from evosearch.checkpoints.families.registry import family_of
from evosearch.checkpoints.reader import CONFIG, Checkpoint, read_json
from evosearch.errors import CheckpointError
from evosearch.materialize.config_keys import blamed, reason_of

Config = Mapping[str, Any]

GENERATION = "generation_config.json"
# Keys that do not affect the forward pass in any family; a family may have more (`Family.irrelevant_keys`)
IRRELEVANT = frozenset(
    {
        "architectures",
        "dtype",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
IRRELEVANT_SUFFIXES = ("_dropout", "_pdrop", "_token_id")  # token ids do not affect the forward pass
IRRELEVANT_PREFIXES = ("_", "unsloth_")


def settings(config: Config, where: str) -> Any:
    """Return the transformers config object of a config.json.

    Args:
        config: Contents of config.json.
        where: The file, for errors.

    Raises:
        CheckpointError: transformers rejects the config; the error names the key if it is a single one.
    """
    try:
        return parsed(config)
    except Exception as error:  # whatever the config's class stumbles over, such as a division by zero
        key = blamed(config, parsed)
        what = f"transformers cannot build this model: {reason_of(error)}"
        if key is None:
            raise CheckpointError(where, what, next="Fix the config") from error
        raise CheckpointError(f"{where}: {key}", f"got {config[key]!r}; {what}", next="Fix the config") from error


def parsed(config: Config) -> Any:
    """Return the transformers config object of a config.json; raises whatever transformers does."""
    kind = getattr(transformers, config["architectures"][0]).config_class
    return kind.from_dict(deepcopy(dict(config)))  # from_dict modifies nested dictionaries


def differences(one: Config, other: Config, where: str = CONFIG) -> dict[str, tuple[Any, Any]]:
    """Return the differing keys that affect answers → (value in one, value in the other).

    Nested keys are joined by dots, such as `rope_parameters.rope_theta`.

    Raises:
        CheckpointError: transformers rejects one of the configs.
    """
    if one is other or dict(one) == dict(other):
        return {}
    first, second = (_relevant(config, where) for config in (one, other))
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def end_tokens(checkpoint: Checkpoint) -> Any:
    """Return the end-of-sequence token ids of this model's export: one id, several, or None.

    As in transformers, they come from the generation config of the export, else from config.json.

    Raises:
        CheckpointError: One of the two files is damaged.
    """
    for folder in (
        checkpoint.tokenizer_folder,
        checkpoint.folder,
    ):  # the tokenizer's folder first: its file has the tokenizer's ids
        if (folder / GENERATION).is_file():
            return read_json(folder / GENERATION).get("eos_token_id")
    return settings(checkpoint.config, str(checkpoint.folder / CONFIG)).eos_token_id


def _relevant(config: Config, where: str) -> dict[str, Any]:
    found: dict[str, Any] = settings(config, where).to_dict()
    of_family = family_of(config, where).irrelevant_keys
    return _flat({key: value for key, value in found.items() if key not in of_family and not _is_irrelevant(key)})


def _is_irrelevant(key: str) -> bool:
    return key in IRRELEVANT or key.endswith(IRRELEVANT_SUFFIXES) or key.startswith(IRRELEVANT_PREFIXES)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
