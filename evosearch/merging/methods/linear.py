"""linear: weighted average of the models (model soups, Wortsman et al. 2022)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.kernels import at_least_float32, total
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sums import weighted_sum
from evosearch.recipe.shapes import MergekitForm, Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ = ⟨dL/dθ, θᵢ − θ⟩ / Σw, or ⟨dL/dθ, θᵢ⟩ without `normalize`.

    With `normalize`, differences from the first model are summed, which are small in fine-tunes of one base.
    """
    weights, first, dtype = p.each("weight"), parents[0], at_least_float32(p.dtype)
    if not p["normalize"]:
        return {"weight": tuple(total(lambda _, pair: pair[0] * pair[1], (grad, one), dtype) for one in parents)}
    slopes = [total(lambda _, c: c[0] * (c[1] - c[2]), (grad, one, first), dtype) for one in parents]
    divisor = sum(weights)
    mean = sum(w * slope for w, slope in zip(weights, slopes, strict=True)) / divisor  # ⟨dL/dθ, θ − θ₁⟩
    return {"weight": tuple((slope - mean) / divisor for slope in slopes)}


@merge_method(
    "linear",
    paper="arXiv:2203.05482",
    summary="Averages fine-tunes of one base that were trained on similar data; needs no base.",
    takes_base=False,
    parameters={
        "weight": Param(0.0, 1.5, per_model=True),
        "normalize": Param(default=True, kind="bool"),
    },
    mergekit=MergekitForm("linear", leave_out={"weight": 0.0}),
    differentiable=("weight",),
    derivative=derivative,
)
def linear(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return Σ wᵢθᵢ / Σ wᵢ, or Σ wᵢθᵢ without `normalize`.

    Raises:
        CandidateError: With `normalize`, the weights sum to zero.
    """
    weights = p.each("weight")
    total = sum(weights) if p["normalize"] else 1.0
    if abs(total) <= 1e-6 * sum(abs(w) for w in weights):  # also where all are zero
        raise CandidateError("materialize", f"linear: weights {weights} sum to {total:g}, which normalize divides by")
    return weighted_sum(parents, [w / total for w in weights], p)  # Σ (wᵢ / Σw) θᵢ
