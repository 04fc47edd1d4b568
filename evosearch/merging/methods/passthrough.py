"""passthrough: one model as it is, times a scale."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.merging.kernels import elementwise
from evosearch.merging.parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import Param


@merge_method(
    "passthrough",
    paper="mergekit (arXiv:2403.13257)",
    takes_base=False,
    models=(1, 1),
    parameters={"scale": Param(0.0, 2.0, default=1.0, per_model=True)},
)
def passthrough(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Scale · θ, tensor by tensor: filters say which tensors are scaled."""
    (scale,) = p.each("scale")
    return elementwise(lambda _, chunks: chunks[0] * scale, parents, p.dtype)
