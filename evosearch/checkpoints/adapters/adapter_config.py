"""Reader of peft's adapter_config.json; settings that cannot be applied are rejected."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch.checkpoints.adapters.module_pattern import ModulePattern, UnsafePatternError
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.references import ADAPTER_CONFIG
from evosearch.errors import CheckpointError
from evosearch.untrusted import quoted, shown

_HANDLED = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "bias"}
_HANDLED |= {"target_modules", "modules_to_save", "init_lora_weights", "base_model_name_or_path"}
# Settings for training, initialization or inference only, and module selections, which the stored tensors imply
_WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
    # The layer's type determines how its weight is stored; peft overrides this key accordingly
    "fan_in_fan_out",
}
ALL_LINEAR = "all-linear"
MAX_EXPRESSIONS = 100  # patterns that are not names
MAX_NUMBER = 2**20  # of ranks and α
_FLAG = (bool, "true or false")
_TYPES: dict[str, tuple[Any, str]] = {  # key → types, and their description
    **dict.fromkeys(("use_rslora", "use_dora", "fan_in_fan_out", "inference_mode", "lora_bias"), _FLAG),
    "init_lora_weights": (bool | str, "true, false, or the name of an initialization"),
    "base_model_name_or_path": (str, "The name of a model"),
    "lora_dropout": (int | float, "A number"),
}
# Settings with a specific error message
_UNSUPPORTED = {
    "lora_bias": "biases of lora_B are not supported",
    "layer_replication": "repeated layers are not supported",
    "target_parameters": "LoRA on parameters outside of linear layers (mixtures of experts) is not supported",
    "trainable_token_indices": "training of individual token embeddings is not supported",
    "alora_invocation_tokens": "an activated LoRA changes only some positions and cannot be merged",
    "megatron_config": "Megatron's parallel layers are not supported",
    "use_qalora": "QALoRA is not supported",
    "arrow_config": "routing between adapters cannot be merged",
}
# Initializations that change the base model before training; A and B fit only the changed base
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """The validated configuration of a LoRA.

    Attributes:
        where: Path of the file.
        base_name: Base model according to the file.
        rank: Default rank r.
        alpha: Default α.
        ranks: Module pattern → rank, for modules with another rank.
        alphas: Module pattern → α, for modules with another α.
        rslora: The scale is α/√r (arXiv:2312.03732) instead of α/r.
        dora: ΔW is applied with a magnitude per row (arXiv:2402.09353).
        targets: Names of the adapted modules, if listed.
        expression: Pattern of the complete paths of the adapted modules, if it is given and safe to match.
        complete: Whether every module that matches `targets` must be stored.
        saved: Modules that are stored in full.
    """

    where: Path
    base_name: str
    rank: int
    alpha: float
    ranks: Mapping[ModulePattern, int]
    alphas: Mapping[ModulePattern, float]
    rslora: bool
    dora: bool
    targets: tuple[str, ...]
    expression: ModulePattern | None
    complete: bool
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, given by its path in the live model."""
        return self._at(module, self.ranks, self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of B·A: α/r, or α/√r."""
        rank = self.rank_of(module)
        return float(self._at(module, self.alphas, self.alpha)) / (math.sqrt(rank) if self.rslora else rank)

    def matches(self, module: str) -> bool:
        """Return whether `targets` contains the full path of a module or a suffix of it."""
        return any(module == target or module.endswith(f".{target}") for target in self.targets)

    def targets_one_of(self, modules: Collection[str]) -> bool:
        """Return whether the targets have one of these modules, or are not a list or a safe expression."""
        if self.expression is not None:
            return any(self.expression.matches_all(module) for module in modules)
        return not self.targets or any(map(self.matches, modules))

    @staticmethod
    def _at(module: str, patterns: Mapping[ModulePattern, Any], default: Any) -> Any:
        """Return the value of the first pattern that matches a path or a suffix of it, as in peft."""
        return next((value for pattern, value in patterns.items() if pattern.matches(module)), default)


def read_config(folder: Path) -> AdapterConfig:
    """Read the configuration of an adapter.

    Raises:
        CheckpointError: The file is damaged, not a LoRA, or has an unsupported setting that affects weights.
    """
    where = folder / ADAPTER_CONFIG
    data = read_json(where)
    kind = data.get("peft_type")
    if kind != "LORA":
        what = f"{quoted(kind)} is not supported"
        raise CheckpointError(f"{where}: peft_type", what, "LORA", "Merge it with peft first")
    _check(data, where)
    _check_types(data, where)
    targets = data.get("target_modules")
    narrowed = any(data.get(key) for key in ("exclude_modules", "layers_to_transform"))
    return AdapterConfig(
        where,
        str(data.get("base_model_name_or_path") or ""),
        _number(data.get("r"), f"{where}: r", integer=True),
        _number(data.get("lora_alpha"), f"{where}: lora_alpha"),
        _patterns(data, "rank_pattern", where, integer=True),
        _patterns(data, "alpha_pattern", where),
        bool(data.get("use_rslora")),
        bool(data.get("use_dora")),
        tuple(targets) if isinstance(targets, list) else (),
        _expression(targets),
        isinstance(targets, list) and not narrowed,
        tuple(data.get("modules_to_save") or ()),
    )


def _check(data: Mapping[str, Any], where: Path) -> None:
    for key, value in data.items():
        if key in _HANDLED | _WITHOUT_EFFECT or value in (None, False, [], {}):
            continue
        what = _UNSUPPORTED.get(key, f"got {quoted(value)}, which is not supported")
        next = "Merge it with peft first (merge_and_unload)"
        raise CheckpointError(f"{where}: {shown(key)}", what, "A plain LoRA, rsLoRA or DoRA", next)
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        what = f"'{start}' changed the base before training; the adapter fits only the changed base"
        next = "Convert it to a plain LoRA: save it with peft's path_initial_model_for_weight_conversion"
        raise CheckpointError(f"{where}: init_lora_weights", what, next=next)
    for key in ("modules_to_save", "target_modules"):
        value = data.get(key)
        text = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not (value is None or text or (key == "target_modules" and isinstance(value, str))):
            raise CheckpointError(f"{where}: {key}", f"got {quoted(value)}", "A list of module names")
    if data.get("bias", "none") not in ["none", "all", "lora_only"]:
        raise CheckpointError(f"{where}: bias", f"got {quoted(data['bias'])}", "none, all or lora_only")


def _check_types(data: Mapping[str, Any], where: Path) -> None:
    for key, (kinds, allowed) in _TYPES.items():
        if not isinstance(data.get(key), kinds | None):
            raise CheckpointError(f"{where}: {key}", f"got {quoted(data[key])}", allowed)


def _expression(targets: Any) -> ModulePattern | None:
    """Return the pattern of `target_modules`; None if it is a list, or an expression that is not safe to match.

    Targets decide which modules peft trains. The stored tensors say which these were, so the pattern is not needed.
    """
    if not isinstance(targets, str) or targets.lower() == ALL_LINEAR:
        return None
    try:
        return ModulePattern.of(targets)
    except UnsafePatternError:
        return None


def _patterns(data: Mapping[str, Any], key: str, where: Path, integer: bool = False) -> dict[ModulePattern, Any]:
    patterns = data.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{where}: {key}", f"got {quoted(patterns)}", "A mapping of module patterns to numbers")
    found: dict[ModulePattern, Any] = {}
    for text, value in patterns.items():
        try:
            pattern = ModulePattern.of(text)
        except UnsafePatternError as error:
            allowed = "Names of modules, or expressions of characters, sets, groups, alternatives and repetitions"
            next = "List the modules by name, or merge the adapter with peft first"
            raise CheckpointError(f"{where}: {key}", f"{quoted(text)} {error}", allowed, next) from None
        found[pattern] = _number(value, f"{where}: {key}.{shown(text)}", integer)
    expressions = sum(pattern.parts is not None for pattern in found)
    if expressions > MAX_EXPRESSIONS:
        allowed = f"At most {MAX_EXPRESSIONS}, and any number of names"
        raise CheckpointError(f"{where}: {key}", f"{expressions} expressions", allowed)
    return found


def _number(value: Any, where: str, integer: bool = False) -> Any:
    kinds, least = ((int,), 1) if integer else ((int, float), -MAX_NUMBER)
    if type(value) not in kinds or not least <= value <= MAX_NUMBER:
        allowed = f"A {'positive whole number' if integer else 'number'} up to {MAX_NUMBER}"
        raise CheckpointError(where, f"got {quoted(value)}", allowed)
    return value
