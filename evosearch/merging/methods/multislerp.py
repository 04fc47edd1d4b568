"""multislerp: weighted mean direction of any number of models (Goddard, goddard.blog)."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.combinations import combine, contract, norms
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import MergekitForm, Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ = Σⱼ ∂cⱼ/∂wᵢ ⟨dL/dθ, xⱼ⟩ for the merge Σ cⱼxⱼ."""
    return {"weight": contract(base, parents, p, grad, partial(_mean, p), p.each("weight"))}


@merge_method(
    "multislerp",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    summary="Averages the directions of several models and keeps their mean norm; with a base, those of their changes.",
    models=(2, None),
    parameters={
        "weight": Param(0.0, 1.5, per_model=True),
        "normalize_weights": Param(default=True, kind="bool"),
        "eps": Param(1e-10, 1e-6, default=1e-8, strict=True),
    },
    mergekit=MergekitForm("multislerp"),
    differentiable=("weight",),
    derivative=derivative,
)
def multislerp(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return exp_m(Σ wᵢ log_m(uᵢ)) · Σ wᵢ‖xᵢ‖, plus θ₀ if there is a base, with uᵢ = xᵢ / (‖xᵢ‖ + eps).

    xᵢ is τᵢ = θᵢ − θ₀ with a base, else θᵢ, as one vector. m is the direction of Σ wᵢuᵢ, and the logarithm is the
    projection uᵢ − ⟨uᵢ, m⟩m on the tangent space at m. At this m the weighted projections sum to zero, so the result
    is exactly m · Σ wᵢ‖xᵢ‖. `normalize_weights` divides the weights by their sum. Two vectors that cancel each other
    are averaged without a direction.

    Raises:
        CandidateError: With `normalize_weights`, the weights sum to zero; or Σ wᵢuᵢ of more than two models is zero.
    """
    return combine(base, parents, p, partial(_mean, p), p.each("weight"))


def _mean(p: Parameters, gram: Tensor, weights: Tensor) -> Tensor:
    """Return the coefficient of every vector: (K,)."""
    if p["normalize_weights"]:
        total = weights.sum()
        if total.abs() <= 1e-6 * weights.abs().sum():
            given = weights.tolist()
            reason = f"multislerp: weights {given} sum to {total.item():g}, which normalize_weights divides by"
            raise CandidateError("materialize", reason)
        weights = weights / total
    lengths, eps = norms(gram), p["eps"]
    units = weights / (lengths + eps)  # Σ wᵢuᵢ = Σ unitsᵢ xᵢ
    squared = units @ gram @ units
    if squared <= eps**2:
        if len(weights) == 2 or not (weights * lengths).any():
            return weights
        reason = "multislerp: the weighted directions of the models cancel each other; change a weight"
        raise CandidateError("materialize", reason)
    return units / squared.sqrt() * (weights * lengths).sum()  # m · Σ wᵢ‖xᵢ‖
