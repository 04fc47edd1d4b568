"""midrange: a point between the smallest and the largest value of each entry."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evosearch.merging.kernels import at_least_float32, elementwise, total
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dt = ⟨dL/dθ, max θᵢ − min θᵢ⟩, where t is `position`."""

    def terms(_: int, chunks: list[Tensor]) -> Tensor:
        stacked = torch.stack(chunks[1:])  # (K, chunk)
        return chunks[0] * (stacked.amax(dim=0) - stacked.amin(dim=0))

    return {"position": total(terms, (grad, *parents), at_least_float32(p.dtype))}


@merge_method(
    "midrange",
    paper="none: an example",
    summary="Averages the extremes of each entry; an example of a method from another package.",
    takes_base=False,
    models=(2, None),
    parameters={"position": Param(0.0, 1.0, default=0.5, strict=True)},
    differentiable=("position",),
    derivative=derivative,
)
def midrange(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return (1−t) · min θᵢ + t · max θᵢ, entry by entry, where t is `position`."""
    t = p["position"]

    def between(_: int, thetas: list[Tensor]) -> Tensor:
        stacked = torch.stack(thetas)  # (K, chunk)
        return (1 - t) * stacked.amin(dim=0) + t * stacked.amax(dim=0)

    return elementwise(between, parents, p.dtype)
