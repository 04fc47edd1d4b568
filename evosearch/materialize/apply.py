"""One operation of a plan carried out: the same code in memory and on disk, so that both give the same bits."""

from collections.abc import Callable

import torch

from evosearch.materialize.plan import TensorOp
from evosearch.merging.registry import method

TensorOf = Callable[[str, str], torch.Tensor]  # (model's reference, tensor's name) -> the tensor


def apply(op: TensorOp, tensor_of: TensorOf, out_dtype: torch.dtype) -> torch.Tensor:
    """The merged tensor, rounded to `out_dtype`.

    Raises:
        CandidateError: its parameters have no merge.
    """
    base = tensor_of(op.base, op.tensor) if op.base is not None else None
    parents = [tensor_of(reference, op.tensor) for reference in op.parents]
    return method(op.method).merge(base, parents, op.parameters).to(out_dtype)


def extremes(tensor: torch.Tensor) -> torch.Tensor:
    """(2,) least and largest value, on the tensor's device: finite exactly when every value is."""
    return torch.stack(torch.aminmax(tensor)).float()


def not_finite(name: str, recipe_dtype: str) -> str:
    """The reason to give for a merged tensor with an infinite or undefined value."""
    return f"tensor '{name}' is not finite in {recipe_dtype}: the weights are too large, or a parent is damaged"
