"""passthrough: one model, with tensors scaled."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.kernels import at_least_float32, elementwise, total
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import MergekitForm, Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dscale = ⟨dL/dθ, θ₁⟩, where θ₁ is the model's tensor."""
    product = total(lambda _, pair: pair[0] * pair[1], (grad, parents[0]), at_least_float32(p.dtype))
    return {"scale": (product,)}


@merge_method(
    "passthrough",
    paper="mergekit (arXiv:2403.13257)",
    summary="Copies the layers of one model per slice, to stack or repeat layers without merging weights.",
    takes_base=False,
    models=(1, 1),
    parameters={"scale": Param(0.0, 2.0, default=1.0, per_model=True)},
    mergekit=MergekitForm("passthrough"),
    differentiable=("scale",),
    derivative=derivative,
)
def passthrough(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return scale · θ; filters select the tensors to scale."""
    (scale,) = p.each("scale")
    return elementwise(lambda _, chunks: chunks[0] * scale, parents, p.dtype, sink=p.sink)
