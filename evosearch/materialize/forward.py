"""Comparison of config.json files by the keys that affect a model's answers.

Configs are compared as transformers reads them: an older key and its successor (`rope_theta`, `rope_parameters`) are
equal, and a missing key has its default.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import transformers

from evosearch.checkpoints.families.registry import family_of
from evosearch.checkpoints.model_files import GENERATION, read_json
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.tokenizers.tokenizer import MAX_ID
from evosearch.errors import CheckpointError
from evosearch.materialize.config_keys import blamed
from evosearch.untrusted import boundary, present, quoted, reason

Config = Mapping[str, Any]

MAX_LABELS = 10_000  # classes of a classifier, which causal models do not have
MAX_COUNT = 2**31 - 1
# Keys of generation_config.json by the type of their values
TOKEN_ID, TOKEN_LISTS = "_token_id", ("suppress_tokens", "begin_suppress_tokens")
COUNTS = frozenset(
    {
        *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "num_beam_groups"),
        *("num_return_sequences", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    }
)
NUMBERS = frozenset(
    {
        *("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty"),
        *("encoder_repetition_penalty", "length_penalty", "diversity_penalty", "guidance_scale", "max_time"),
    }
)
FLAGS = frozenset({"do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "low_memory"})
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
    _check_labels(config, where)
    try:
        return parsed(config)
    except Exception as error:  # whatever the config's class stumbles over, such as a division by zero
        key = blamed(config, parsed)
        what = f"transformers cannot build this model: {reason(error)}"
        if key is None:
            raise CheckpointError(where, what, next="Fix the config") from error
        raise CheckpointError(f"{where}: {key}", f"got {config[key]!r}; {what}", next="Fix the config") from error


def parsed(config: Config) -> Any:
    """Return the transformers config object of a config.json; raises whatever transformers does."""
    kind = getattr(transformers, config["architectures"][0]).config_class
    return kind.from_dict(deepcopy(dict(config)))  # from_dict modifies nested dictionaries


def _check_labels(config: Config, where: str) -> None:
    """Check the number of classes, of which transformers makes a dictionary even for models that have none."""
    count = config.get("num_labels")
    if count is not None and not (type(count) is int and 0 <= count <= MAX_LABELS):
        allowed = f"A whole number up to {MAX_LABELS}"
        raise CheckpointError(
            f"{where}: num_labels", f"got {quoted(count)}", allowed, "Remove the key: language models have no classes"
        )


def generation_config(folder: Path) -> transformers.GenerationConfig | None:
    """Return the generation config of a model folder; None without one.

    Raises:
        CheckpointError: The file is damaged, or transformers rejects it. The message names the key if it is known.
    """
    path = folder / GENERATION
    if not present(path):
        return None
    data = read_json(path)
    for key, value in data.items():
        allowed = _allowed(key, value)
        if allowed is not None:
            raise CheckpointError(f"{path}: {key}", f"got {quoted(value)}", allowed, "Fix or remove the key")
    with boundary(str(path), CheckpointError, "transformers rejects it", "Fix or remove the file"):
        made: transformers.GenerationConfig = transformers.GenerationConfig.from_dict(deepcopy(data))
    return made


def _allowed(key: str, value: Any) -> str | None:
    """Return what a key of a generation config allows; None if it allows this value, or is not known."""
    if value is None:
        return None
    if key.endswith(TOKEN_ID):
        ids = value if isinstance(value, list) else [value]
        return None if all(type(id) is int and -1 <= id < MAX_ID for id in ids) else "A token id, or a list of them"
    if key in TOKEN_LISTS:
        valid = isinstance(value, list) and all(type(id) is int and 0 <= id < MAX_ID for id in value)
        return None if valid else "A list of token ids"
    if key in COUNTS:
        return None if type(value) is int and 0 <= value <= MAX_COUNT else "A whole number, not negative"
    if key in NUMBERS:
        return None if type(value) in (int, float) else "A number"
    if key in FLAGS:
        return None if isinstance(value, bool) else "true or false"
    return None


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
    # the tokenizer's folder first: its file has the tokenizer's ids
    for folder in (checkpoint.tokenizer_folder, checkpoint.folder):
        found = generation_config(folder)
        if found is not None:
            return found.eos_token_id
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
