"""The resident model: built once, then overwritten by one candidate after another."""

import time
from collections.abc import Mapping

import torch
import transformers

from evosearch.checkpoints.compatibility import check_compatible
from evosearch.checkpoints.quiet import no_bars
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CandidateError, CheckpointError, RecipeError, did_you_mean
from evosearch.materialize.apply import apply, extremes, not_finite
from evosearch.materialize.plan import TensorOp, output_dtype, plan
from evosearch.merging.registry import specs
from evosearch.recipe.schema import Recipe

HEADROOM = 2.0  # device memory left over, as a multiple of the parents', before they are kept there


class ResidentModel:
    """A live transformers model whose weights a recipe is written into.

    After construction nothing is built and no file is opened: a candidate costs the merge alone.

    Args:
        checkpoints: reference → checkpoint, for every model that recipes may name.
        donor: the reference whose config the model is built from.
        device: where the model lives. The parents are kept there too where they fit, else in mapped host memory.
        compute_dtype: the type the model runs in. Weights are rounded to the recipe's output type first.

    Attributes:
        model: the transformers model, in eval mode, with sdpa attention; holds the donor's weights at first.

    Raises:
        CheckpointError: the checkpoints do not fit each other, or transformers cannot build the donor's model.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        donor: str,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        check_compatible(list(checkpoints.values()))
        self.device, self.shape = torch.device(device), checkpoints[donor].shape
        self._methods = specs()
        self.model = _build(checkpoints[donor], compute_dtype).to(self.device)
        self._targets = _targets(self.model, checkpoints[donor])
        self._tensors = {reference: self._resident(checkpoint) for reference, checkpoint in checkpoints.items()}

    @torch.no_grad()
    def materialize(self, recipe: Recipe) -> float:
        """Overwrite the model with a recipe's weights.

        Returns:
            Seconds it took.

        Raises:
            CandidateError: parameters that have no merge, or a merged tensor that is not finite. The model then holds
                no candidate, and the next one overwrites it.
            RecipeError: the recipe does not fit its method, or names a model that is not loaded.
        """
        started = time.perf_counter()
        ops = plan(recipe, self.shape, self._methods)
        self._check_loaded(ops[0])
        out_dtype, found = output_dtype(recipe), []
        for op in ops:
            merged = apply(op, self._tensor, out_dtype)
            found.append(extremes(merged))
            self._targets[op.tensor].copy_(merged)
        bounds = torch.stack(found).isfinite().all(dim=1).tolist()  # one wait for the device, not one a tensor
        for op, finite in zip(ops, bounds, strict=True):
            if not finite:
                raise CandidateError("materialize", not_finite(op.tensor, recipe.output_dtype))
        return time.perf_counter() - started

    def _tensor(self, reference: str, name: str) -> torch.Tensor:
        return self._tensors[reference][name].to(self.device, non_blocking=True)

    def _check_loaded(self, op: TensorOp) -> None:
        for reference in op.sources:
            if reference not in self._tensors:
                known = ", ".join(self._tensors)
                near = did_you_mean(reference, self._tensors)
                raise RecipeError("recipe.models", f"'{reference}' is not among the loaded models", known, near)

    def _resident(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """A parent's tensors: mapped from its files, or copied to the device where there is room."""
        tensors = {name: checkpoint.load(name) for name in checkpoint.tensors}
        if self.device.type == "cuda":
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            if torch.cuda.mem_get_info(self.device)[0] > HEADROOM * size:
                tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return tensors


def _build(donor: Checkpoint, compute_dtype: torch.dtype) -> torch.nn.Module:
    """The transformers model of a checkpoint, its weights copied: it is written to, the mapped files must not be."""
    rename = donor.family.to_module_name
    weights = {rename(name): donor.load(name).to(compute_dtype, copy=True) for name in donor.tensors}
    config = transformers.AutoConfig.from_pretrained(donor.folder)
    kind = getattr(transformers, donor.shape.architecture)
    try:
        with no_bars():
            model = kind.from_pretrained(
                None, config=config, state_dict=weights, dtype=compute_dtype, attn_implementation="sdpa"
            )
        if (donor.folder / "generation_config.json").is_file():  # what the export will carry, as its end tokens
            model.generation_config = transformers.GenerationConfig.from_pretrained(donor.folder)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(str(donor.folder), f"transformers cannot build this model: {reason}") from error
    built: torch.nn.Module = model.eval().requires_grad_(False)
    return built


def _targets(model: torch.nn.Module, donor: Checkpoint) -> dict[str, torch.nn.Parameter]:
    """Disk name → the live parameter it is written into. Tied embeddings are one parameter, written once."""
    live = dict(model.named_parameters())
    targets = {name: live.pop(donor.family.to_module_name(name)) for name in donor.tensors}
    assert not live, f"parameters without a tensor on disk: {sorted(live)}"
    return targets
