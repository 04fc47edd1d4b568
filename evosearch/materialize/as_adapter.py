"""Export of a recipe as a LoRA adapter of its base: ΔW = θ_merged − θ_base ≈ B·A for every linear weight.

The result is a standard peft folder. Changed tensors that LoRA does not cover (norms, biases, embeddings) are stored in
full with `save_modules`, and are an error without it.
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
from evosearch.checkpoints.writer import draft_of
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.layout import output
from evosearch.materialize.loadable import check_adapter, check_base
from evosearch.materialize.lora import WHERE, Lora
from evosearch.materialize.plan import donor_of
from evosearch.recipe.schema import Recipe


@dataclass(frozen=True)
class AdapterReport:
    """Result of an adapter export and its approximation error.

    Attributes:
        out: The folder.
        base: Reference of the base model.
        ranks: Linear weight (name on disk) → rank, at most the requested one.
        errors: Linear weight → ‖ΔW − B·A‖ / ‖ΔW‖.
        error: The same, over all linear weights together.
        saved: Tensors stored in full.
        bytes: Size of adapter_model.safetensors.
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
    """Write a recipe's model as an adapter of its base, or of its first model if it has no base.

    The folder appears complete or not at all. ΔW is computed before rounding to the recipe's `out_dtype`, because
    rounding errors have full rank.

    Args:
        recipe: The recipe.
        checkpoints: Reference → checkpoint, for every model that the recipe names.
        out: The folder to create.
        rank: Maximum rank of the adapter.
        save_modules: Store changed modules that are not linear in full (`modules_to_save`).

    Raises:
        RecipeError: The recipe is a route, does not fit its method, has other layers than its base, or changes
            tensors that LoRA does not cover.
        CheckpointError: The checkpoints are incompatible, transformers cannot build the base, or `out` is not empty or
            cannot be written.
        CandidateError: The merge is undefined for the parameter values, or a merged tensor is not finite.
    """
    if recipe.routing is not None:
        what = "an adapter cannot change the order of its base's layers"
        raise RecipeError("recipe.routing", what, "Only recipes with merge_method have adapters", "Export a checkpoint")
    reference = donor_of(recipe)
    base = checkpoints[reference]
    _check_base(recipe, checkpoints, reference)
    check_compatible([checkpoints[name] for name in recipe.references()])
    check_base(base)
    draft = draft_of(out)
    try:
        made = Lora(recipe, checkpoints, base)
        made.save_others(save_modules)
        made.factorize(rank)
        size = _write(draft.folder, out, made.tensors, made.config(_name(reference)))
        check_adapter(draft.folder, base)
        draft.folder.rename(out)  # replaces an empty folder, fails on any other
    finally:
        draft.close()
    lost, full = (sum(getattr(found, what) ** 2 for found in made.factors.values()) for what in ("lost", "size"))
    return AdapterReport(
        out,
        reference,
        {name: found.rank for name, found in made.factors.items()},
        {name: found.error for name, found in made.factors.items()},
        (lost / full) ** 0.5 if full else 0.0,
        tuple(made.saved),
        size,
    )


def _check_base(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], reference: str) -> None:
    """Check that the base is an unchanged checkpoint with the recipe's layers in their order."""
    base = checkpoints[reference]
    if isinstance(base, Overlay):
        what = f"its base would be '{reference}', which is not an unmodified checkpoint"
        next = "Export a checkpoint, or name a plain model as base_model"
        raise RecipeError(WHERE, what, "The base must have no adapter, no recipe and no changed vocabulary", next)
    if output(recipe, checkpoints).shape is not base.shape:
        what = "the recipe's layers differ from its base's"
        raise RecipeError(WHERE, what, "All layers of the base, in their order", "Export a checkpoint")


def _name(reference: str) -> str:
    """Return the base's name in the adapter: hub ids and schemes unchanged, only the last component of a path."""
    named = reference.startswith(("/", "./", "../", "~")) or Path(reference).is_dir()
    return Path(reference).name if named else reference


def _write(draft: Path, out: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> int:
    """Write weights and config into the draft of a folder; return the weights' size in bytes."""
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, draft / ADAPTER_WEIGHTS, {"format": "pt"}
        )
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (draft / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        return (draft / ADAPTER_WEIGHTS).stat().st_size
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(str(out), f"cannot be written: {reason}", next="Check space and permissions") from None
