"""What of a config.json decides the answers of a model, and whether two configs give the same ones.

Configs are compared as transformers understands them: an older key and its successor (`rope_theta`, `rope_parameters`)
are one, and a key that is left out has its default.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError

from evosearch.checkpoints.reader import CONFIG, Checkpoint, read_json
from evosearch.errors import CheckpointError

Config = Mapping[str, Any]

GENERATION = "generation_config.json"
# Who wrote a config, how its weights were stored, and what only training or other heads than a language model's use.
OF_NO_MATTER = frozenset(
    {
        "architectures",
        "classifier_dropout",
        "dtype",
        "embd_pdrop",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
ENDINGS_OF_NO_MATTER = ("_dropout", "_pdrop", "_token_id")  # weights know nothing of ids; a stop is no forward
STARTS_OF_NO_MATTER = ("_", "summary_", "unsloth_")


def settings(config: Config, where: str) -> Any:
    """Transformers' config object of a config.json.

    Args:
        where: what the config was read from, for the error.

    Raises:
        CheckpointError: transformers does not take it.
    """
    try:
        kind = getattr(transformers, config["architectures"][0]).config_class
        return kind.from_dict(deepcopy(dict(config)))  # it writes into nested ones
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
        raise CheckpointError(
            where, f"transformers cannot build this model: {reason}", next="Mend the config"
        ) from error


def differences(one: Config, other: Config, where: str = CONFIG) -> dict[str, tuple[Any, Any]]:
    """Key → its values in both, for what decides answers and is not the same; `rope_parameters.rope_theta` if nested.

    Raises:
        CheckpointError: transformers does not take one of them.
    """
    if one is other or dict(one) == dict(other):
        return {}
    first, second = (_decisive(config, where) for config in (one, other))
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def end_tokens(checkpoint: Checkpoint) -> Any:
    """What ends a text that an export of this model generates: an id, several, or None.

    As transformers has it: of the generation config that the export carries, else of config.json.

    Raises:
        CheckpointError: one of the two files is damaged.
    """
    for folder in (checkpoint.tokenizer_folder, checkpoint.folder):  # beside a tokenizer it has the tokenizer's ids
        if (folder / GENERATION).is_file():
            return read_json(folder / GENERATION).get("eos_token_id")
    return settings(checkpoint.config, str(checkpoint.folder / CONFIG)).eos_token_id


def _decisive(config: Config, where: str) -> dict[str, Any]:
    found: dict[str, Any] = settings(config, where).to_dict()
    return _flat({key: value for key, value in found.items() if not _of_no_matter(key)})


def _of_no_matter(key: str) -> bool:
    return key in OF_NO_MATTER or key.endswith(ENDINGS_OF_NO_MATTER) or key.startswith(STARTS_OF_NO_MATTER)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
