"""fisher: average weighted by each parameter's Fisher information (Matena and Raffel 2022)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.kernels import at_least_float32, elementwise, totals
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import FISHER, Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ = ⟨dL/dθ, Fᵢ (θᵢ − θ) / Σ wⱼFⱼ⟩."""
    weights, floor, count = p.each("weight"), _floor(p), len(parents)

    def terms(_: int, parts: list[Tensor]) -> list[Tensor]:
        slope, thetas = parts[0], parts[1 : 1 + count]
        shares = _shares(parts[1 + count :], floor)
        divisor = _sum([share * w for share, w in zip(shares, weights, strict=True)])
        pairs = list(zip(thetas, shares, weights, strict=True))
        mean = _sum([(theta - thetas[0]) * (share * w) for theta, share, w in pairs]) / divisor  # θ − θ₁
        return [slope * share * ((theta - thetas[0]) - mean) / divisor for theta, share, _ in pairs]

    given = (grad, *parents, *p.statistics)
    return {"weight": totals(terms, given, at_least_float32(p.dtype))}


@merge_method(
    "fisher",
    paper="arXiv:2111.09832",
    summary="Averages models, each weight by how much a model's predictions depend on it; needs a sample of texts.",
    takes_base=False,
    parameters={
        "weight": Param(0.0, 1.5, default=1.0, per_model=True, strict=True),
        "floor": Param(0.0, 1.0, default=1e-6, strict=True),
    },
    differentiable=("weight",),
    derivative=derivative,
    statistic=FISHER,
)
def fisher(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return Σ wᵢFᵢθᵢ / Σ wᵢFᵢ, with Fᵢ = E[(∂ log p(y|x) / ∂θ)²] of parent i  (Matena and Raffel 2022).

    Fᵢ is at least `floor` times the mean of all parents' F over the tensor: where no parent's predictions depend on a
    weight, the result is close to Σ wᵢθᵢ / Σ wᵢ. It is exactly that in a tensor without any Fisher information.

    Raises:
        CandidateError: All weights are zero.
    """
    weights, floor, count = p.each("weight"), _floor(p), len(parents)
    if not sum(weights) > 0.0:
        raise CandidateError("materialize", f"fisher: weights {weights} sum to zero, which they are divided by")

    def average(_: int, parts: list[Tensor]) -> Tensor:
        thetas, shares = parts[:count], _shares(parts[count:], floor)
        first = thetas[0]  # differences from it are small in fine-tunes of one base, and lose no precision
        divisor = _sum([share * w for share, w in zip(shares, weights, strict=True)])
        others = zip(thetas[1:], shares[1:], weights[1:], strict=True)
        moved = [(theta - first) * (share * w / divisor) for theta, share, w in others]
        return _sum([first, *moved])

    merged = elementwise(average, (*parents, *p.statistics), at_least_float32(p.dtype))
    return merged.to(p.dtype)


def _floor(p: Parameters) -> float:
    """Return the least F at this tensor; 0 if no parent has any."""
    assert p.statistics, "fisher has a statistic at every tensor"
    sums = totals(lambda _, parts: parts, p.statistics, p.statistics[0].dtype)
    return p["floor"] * sum(sums) / (len(sums) * max(1, p.statistics[0].numel()))


def _shares(fishers: Sequence[Tensor], floor: float) -> list[Tensor]:
    """Return Fᵢ, at least the floor, over their sum, which keeps them within float32; equal shares where all are 0."""
    at_least = [fisher.clamp_min(floor) for fisher in fishers]
    total = _sum(at_least)
    none = total == 0
    return [(one / total.masked_fill(none, 1.0)).masked_fill(none, 1.0) for one in at_least]


def _sum(terms: Sequence[Tensor]) -> Tensor:
    found = terms[0]
    for term in terms[1:]:
        found = found + term
    return found
