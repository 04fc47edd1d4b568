"""A recipe written out as a LoRA adapter of its base: ΔW = θ_merged − θ_base ≈ B·A for every linear weight.

The result is a stock peft folder. What a LoRA does not reach (norms, biases, embeddings) is stored whole where that is
asked for, and refused by name where it changed and is not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from evosearch.checkpoints.overlay import Overlay
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.layout import output
from evosearch.materialize.lora import WHERE, Lora
from evosearch.materialize.plan import donor_of
from evosearch.recipe.schema import Recipe


@dataclass(frozen=True)
class AdapterReport:
    """What was written, and what of the merge it lost.

    Attributes:
        out: the folder.
        base: the reference of the model it belongs to.
        ranks: linear weight (its name on disk) → the rank it took, at most the one asked for.
        errors: linear weight → ‖ΔW − B·A‖ / ‖ΔW‖.
        error: the same over all of them together.
        saved: tensors stored whole.
        bytes: of adapter_model.safetensors.
    """

    out: Path
    base: str
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    error: float
    saved: tuple[str, ...]
    bytes: int


@torch.no_grad()
def write_adapter(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], out: Path, rank: int, save_modules: bool = False
) -> AdapterReport:
    """Write a recipe's model to `out` as an adapter of its base, or of its first model where it has no base.

    ΔW is taken before the result is rounded to the recipe's `out_dtype`: rounding errors have full rank.

    Args:
        checkpoints: reference → checkpoint, for every model the recipe names.
        rank: of the adapter, at most.
        save_modules: store modules whole that changed and are not linear (`modules_to_save`).

    Raises:
        RecipeError: the recipe does not fit its method, has other layers than its base, or changes what a LoRA does
            not reach.
        CheckpointError: the checkpoints do not fit each other, or `out` is not empty or cannot be written.
        CandidateError: parameters that have no merge, or a merged tensor that is not finite.
    """
    if recipe.routing is not None:
        what = "an adapter changes the weights of its base's layers, and cannot run them in another order"
        raise RecipeError("recipe.routing", what, "A recipe with merge_method", "Export a checkpoint")
    reference = donor_of(recipe)
    base = checkpoints[reference]
    _check_base(recipe, checkpoints, reference)
    check_compatible([checkpoints[name] for name in recipe.references()])
    _check_out(out)
    made = Lora(recipe, checkpoints, base)
    made.save_others(save_modules)
    made.factorize(rank)
    size = _write(out, made.tensors, made.config(_name(reference)))
    lost, whole = (sum(getattr(found, what) ** 2 for found in made.factors.values()) for what in ("lost", "size"))
    return AdapterReport(
        out,
        reference,
        {name: found.rank for name, found in made.factors.items()},
        {name: found.error for name, found in made.factors.items()},
        (lost / whole) ** 0.5 if whole else 0.0,
        tuple(made.saved),
        size,
    )


def _check_base(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], reference: str) -> None:
    """An adapter fits one model as it lies on disk, layer by layer."""
    base = checkpoints[reference]
    if isinstance(base, Overlay):
        what = f"its base would be '{reference}', which is no checkpoint as it lies on disk"
        next = "Export a checkpoint, or name a plain model as base_model"
        raise RecipeError(WHERE, what, "A base without adapter, recipe or change of vocabulary", next)
    if output(recipe, checkpoints).shape is not base.shape:
        what = "the recipe stacks layers otherwise than its base"
        raise RecipeError(WHERE, what, "The base's layers in their order", "Export a checkpoint")


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(str(out), "exists and is not an empty folder", next="Name another folder, or remove it")


def _name(reference: str) -> str:
    """What the adapter calls its base: hub ids and schemes as they are, of a path only its last part."""
    named = reference.startswith(("/", "./", "../", "~")) or Path(reference).is_dir()
    return Path(reference).name if named else reference


def _write(out: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> int:
    """Write weights, then the config, without which the folder is no adapter; the bytes of the weights."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, out / ADAPTER_WEIGHTS, {"format": "pt"}
        )
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (out / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        return (out / ADAPTER_WEIGHTS).stat().st_size
    except (OSError, SafetensorError) as error:
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            (out / name).unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(str(out), f"cannot be written: {reason}", next="Check space and permissions") from None
