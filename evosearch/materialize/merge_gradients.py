"""Gradient of a fitness in the coefficients of the merge that made a live model's weights.

An operation is differentiated from activations if it only adds factors times low-rank changes to a linear layer
(`adapter_gradients.py`), otherwise from the gradient of the weights that it wrote (`weight_gradients.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from evosearch.checkpoints.families.registry import Family, Placement
from evosearch.checkpoints.overlay import Factors, Overlay
from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.adapter_gradients import AdaptedLayer, AdapterGradients
from evosearch.materialize.layout import Output
from evosearch.materialize.parents import Tensors
from evosearch.materialize.plan import Input, TensorOp
from evosearch.materialize.slopes import Slopes
from evosearch.materialize.weight_gradients import WeightGradients
from evosearch.merging.kernels import same
from evosearch.merging.registry import method


class MergeGradients:
    """Differentiation of one live model.

    Args:
        model: The live model.
        output: Its layout.
        family: Its family.
        checkpoints: Reference → checkpoint.
        tensors: The checkpoints' tensors, as merges read them.
    """

    def __init__(
        self, model: Any, output: Output, family: Family, checkpoints: Mapping[str, Checkpoint], tensors: Tensors
    ) -> None:
        self._model, self._checkpoints, self._tensors = model, checkpoints, tensors
        self._places = {name: family.placement(name, output.config) for name in output.origins}
        self._live = dict(model.named_parameters())

    @contextmanager
    def collecting(self, ops: Sequence[TensorOp], dimensions: int) -> Iterator[Callable[[], tuple[float, ...]]]:
        """Let backward passes within this context compute a gradient; see `ResidentModel.differentiate`.

        Args:
            ops: The operations that wrote the live weights.
            dimensions: Number of dimensions.

        Raises:
            RecipeError: See `Slopes`.
        """
        slopes = Slopes(ops, dimensions)
        layers = list[AdaptedLayer]()
        parts: dict[torch.nn.Parameter, list[tuple[TensorOp, Placement]]] = {}
        for op in slopes.ops:
            place, changes = self._places[op.tensor], self._low_rank(op)
            if changes is not None and not any(changes):
                continue  # no parent changes this tensor
            layer = self._adapted(op, place, changes) if changes is not None else None
            if layer is not None:
                layers.append(layer)
            else:
                parts.setdefault(self._live[place.parameter], []).append((op, place))
        adapters, weights = AdapterGradients(layers, slopes), WeightGradients(parts, self._tensor, slopes)

        def total() -> tuple[float, ...]:
            adapters.finish()
            weights.finish()
            return slopes.total()

        with adapters.collecting(), weights.collecting(), _every_row(self._model):
            yield total

    def _tensor(self, source: Input, device: torch.device) -> torch.Tensor:
        return self._tensors[source.reference][source.tensor].to(device, non_blocking=True)

    def _low_rank(self, op: TensorOp) -> list[Factors | None] | None:
        """Return each parent's change of the base's tensor as factors, None for a parent that shares the tensor.

        The result is None if the method has no factors, or if a change is not known to be of low rank.
        """
        if method(op.method).factors_at(op.parameters) is None or op.base is None:
            return None
        base, found = self._tensors[op.base.reference][op.base.tensor], list[Factors | None]()
        for parent in op.parents:
            if same(base, self._tensors[parent.reference][parent.tensor]):
                found.append(None)
                continue
            checkpoint = self._checkpoints[parent.reference]
            change = checkpoint.low_rank(parent.tensor) if isinstance(checkpoint, Overlay) else None
            own = _origin(self._checkpoints[op.base.reference], op.base.tensor)
            if change is None or parent.tensor != op.base.tensor or _origin(change[0], parent.tensor) is not own:
                return None  # an adapter of another model
            found.append(change[1])
        return found

    def _adapted(self, op: TensorOp, place: Placement, changes: Sequence[Factors | None]) -> AdaptedLayer | None:
        path, _, kind = place.parameter.rpartition(".")
        module = self._model.get_submodule(path)
        linear = isinstance(module, torch.nn.Linear | Conv1D) and kind == "weight" and not place.index
        return AdaptedLayer.of(op, module, changes) if linear else None


@contextmanager
def _every_row(model: Any) -> Iterator[None]:
    """Let the padding token's row have a gradient, which torch leaves out: in texts it is a token like any other."""
    padded = [
        (module, module.padding_idx)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None
    ]
    try:
        for module, _ in padded:
            module.padding_idx = None
        yield
    finally:
        for module, row in padded:
            module.padding_idx = row


def _origin(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Return the checkpoint that has a tensor in its own files."""
    while (under := checkpoint.shares(name)) is not None:
        checkpoint = under
    return checkpoint
