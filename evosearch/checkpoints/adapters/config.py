"""adapter_config.json, as peft writes it: what of it changes weights, and what of that cannot be applied here."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch.checkpoints.files import read_json
from evosearch.checkpoints.references import ADAPTER_CONFIG
from evosearch.errors import CheckpointError

# Read below.
_HANDLED = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "bias"}
_HANDLED |= {"target_modules", "modules_to_save", "init_lora_weights", "base_model_name_or_path"}
# They say how it was trained, started or is run, or choose modules whose tensors are there to be seen.
_WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
    # A layer's type says how its weight is stored, and peft corrects this key by it: see `adapters`.
    "fan_in_fan_out",
}
# What it would take to apply them is said where something helps.
_REFUSED = {
    "lora_bias": "a bias beside lora_B is not supported",
    "layer_replication": "repeated layers are not supported",
    "target_parameters": "LoRA on parameters that belong to no linear layer (mixture-of-experts) is not supported",
    "trainable_token_indices": "embeddings trained for single tokens are not supported",
    "alora_invocation_tokens": "an activated LoRA changes some positions only, and cannot be merged",
    "megatron_config": "parallel layers of Megatron are not supported",
    "use_qalora": "QALoRA is not supported",
    "arrow_config": "routing between adapters cannot be merged",
}
# They change the base model before training; the stored A and B fit that changed base alone.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA's configuration, checked.

    Attributes:
        where: the file.
        base_name: the model it was trained on, as it says.
        dora: ΔW is applied with a magnitude a row (arXiv:2402.09353).
        rslora: the scale is α/√r (arXiv:2312.03732) in place of α/r.
        targets: module names it was trained on, where it lists them.
        complete: whether every module that `targets` match must be there.
        saved: modules stored whole.
    """

    where: Path
    base_name: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]  # pattern → rank, where it is not `rank`
    alphas: Mapping[str, float]
    rslora: bool
    dora: bool
    targets: tuple[str, ...]
    complete: bool
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank at a module, named by its path in the live model."""
        return self._at(module, self.ranks, self.rank)

    def scale_of(self, module: str) -> float:
        """What B·A is multiplied by: α/r, or α/√r."""
        rank = self.rank_of(module)
        return float(self._at(module, self.alphas, self.alpha)) / (math.sqrt(rank) if self.rslora else rank)

    def matches(self, module: str) -> bool:
        """Whether `targets` name a module: by its whole path or the end of it."""
        return any(module == target or module.endswith(f".{target}") for target in self.targets)

    @staticmethod
    def _at(module: str, patterns: Mapping[str, Any], default: Any) -> Any:
        """The value of the first pattern that matches a path or the end of one, as peft looks it up."""
        found = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
        return next(found, default)


def read_config(folder: Path) -> AdapterConfig:
    """The configuration of an adapter's folder.

    Raises:
        CheckpointError: it is damaged, no LoRA, or says something that changes weights and is not supported.
    """
    where = folder / ADAPTER_CONFIG
    data = read_json(where)
    kind = data.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type", f"'{kind}' is not supported", "LORA", "Merge it with peft first")
    _refuse(data, where)
    targets = data.get("target_modules")
    narrowed = any(data.get(key) for key in ("exclude_modules", "layers_to_transform"))
    return AdapterConfig(
        where,
        str(data.get("base_model_name_or_path") or ""),
        _number(data.get("r"), f"{where}: r", whole=True),
        _number(data.get("lora_alpha"), f"{where}: lora_alpha"),
        _patterns(data, "rank_pattern", where, whole=True),
        _patterns(data, "alpha_pattern", where),
        bool(data.get("use_rslora")),
        bool(data.get("use_dora")),
        tuple(targets) if isinstance(targets, list) else (),
        isinstance(targets, list) and not narrowed,
        tuple(data.get("modules_to_save") or ()),
    )


def _refuse(data: Mapping[str, Any], where: Path) -> None:
    for key, value in data.items():
        if key in _HANDLED | _WITHOUT_EFFECT or value in (None, False, [], {}):
            continue
        what = _REFUSED.get(key, f"got {value!r}, and what it does is not known here")
        next = "Merge it with peft first (merge_and_unload), where peft can"
        raise CheckpointError(f"{where}: {key}", what, "A plain LoRA, rsLoRA or DoRA", next)
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        what = f"'{start}' changed the base before training; this adapter fits that changed base alone"
        next = "Save it again with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        raise CheckpointError(f"{where}: init_lora_weights", what, next=next)
    for key in ("modules_to_save", "target_modules"):
        value = data.get(key)
        text = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not (value is None or text or (key == "target_modules" and isinstance(value, str))):
            raise CheckpointError(f"{where}: {key}", f"got {value!r}", "A list of module names")
    if data.get("bias", "none") not in ("none", "all", "lora_only"):
        raise CheckpointError(f"{where}: bias", f"got {data['bias']!r}", "none, all or lora_only")


def _patterns(data: Mapping[str, Any], key: str, where: Path, whole: bool = False) -> dict[str, Any]:
    patterns = data.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{where}: {key}", f"got {patterns!r}", "Module patterns and a number each")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{where}: {key}", f"{pattern!r} is no regular expression: {error}") from None
    return {pattern: _number(value, f"{where}: {key}.{pattern}", whole) for pattern, value in patterns.items()}


def _number(value: Any, where: str, whole: bool = False) -> Any:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or (whole and value < 1):
        raise CheckpointError(where, f"got {value!r}", "A positive whole number" if whole else "A number")
    return value
