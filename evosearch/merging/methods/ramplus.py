"""ramplus: ram with larger changes where only one model changes an entry (RAM+, Yuan et al. 2026)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.kernels import at_least_float32, totals
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Site, Slope, merge_method
from evosearch.merging.reinforced import EPSILON, add_changes, marks
from evosearch.recipe.shapes import MergekitForm, Param


def survey(sites: Sequence[Site]) -> list[list[float] | None] | None:
    """Compute, for `ratio_scope: model`, the ratios ρᵢ over all tensors with this scope.

    Returns:
        For each site one ratio per parent; None for tensors with ratios of their own.
    """
    jointly = [site.parameters.choice("ratio_scope") == "model" for site in sites]
    if not any(jointly):
        return None
    counts: list[tuple[float, ...]] = []
    for site, joins in zip(sites, jointly, strict=True):
        if joins:
            assert site.base is not None
            counts.append(_counts(site.base(), [load() for load in site.parents], site.parameters))
    found = _ratios([sum(column) for column in zip(*counts, strict=True)])
    return [found if joins else None for joins in jointly]


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dr = Σ min(ρᵢ, α)⟨dL/dθ, uᵢτᵢ⟩ and dL/dα = r Σ ⟨dL/dθ, uᵢτᵢ⟩ over the models with ρᵢ > α.

    uᵢ is 1 in the entries that only model i changes, which are held fixed.
    """
    assert base is not None

    def terms(_: int, chunks: list[Tensor]) -> list[Tensor]:
        slope, *ends = chunks
        theta_0, *thetas = [end.to(p.dtype) for end in ends]  # decisions in the type in which the merge makes them
        taus = [theta - theta_0 for theta in thetas]
        changed, _count, alone = marks(taus, p["epsilon"])
        return [slope * (tau * own * alone) for tau, own in zip(taus, changed, strict=True)]

    slopes = totals(terms, (grad, base, *parents), at_least_float32(p.dtype))
    ratios, alpha = _ratios_of(base, parents, p), p["alpha"]
    by_r = sum(min(ratio, alpha) * slope for ratio, slope in zip(ratios, slopes, strict=True))
    by_alpha = sum(p["r"] * slope * (ratio > alpha) for ratio, slope in zip(ratios, slopes, strict=True))
    return {"r": by_r, "alpha": by_alpha}


@merge_method(
    "ramplus",
    paper="arXiv:2601.13572",
    summary="As ram; strengthens what one model alone changes, the more its other changes are shared.",
    needs_base=True,
    parameters={
        "r": Param(0.0, 1.0, default=0.1),
        "alpha": Param(0.0, 1.0, default=0.2),
        "epsilon": EPSILON,
        "ratio_scope": Param(default="tensor", kind="choice", choices=("tensor", "model")),
    },
    mergekit=MergekitForm("ramplus_tl", fixed={"ratio_scope": "tensor"}),
    survey=survey,
    differentiable=("r", "alpha"),
    derivative=derivative,
    norms=True,
)
def ramplus(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + Σ mᵢλᵢτᵢ / max(1, Σ mᵢ), entry by entry, with τᵢ = θᵢ − θ₀.

    mᵢ is 1 where |τᵢ| > `epsilon`. λᵢ is 1 + r · min(ρᵢ, alpha) in the entries that only model i changes, else 1. ρᵢ
    is the number of entries that model i changes together with others, divided by the number that it changes alone: in
    this tensor, or in the whole model with `ratio_scope: model` (see `survey`).
    """
    assert base is not None
    scales = [1 + p["r"] * min(ratio, p["alpha"]) for ratio in _ratios_of(base, parents, p)]  # λᵢ
    return add_changes(base, parents, p["epsilon"], scales, p)


def _ratios_of(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[float]:
    if p.choice("ratio_scope") == "model":
        assert p.survey is not None, "ratio_scope: model needs the survey"
        found: list[float] = p.survey
        return found
    return _ratios(_counts(base, parents, p))


def _counts(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> tuple[float, ...]:
    """Return for every parent the number of entries that it changes, and then for every parent of those it shares."""

    def terms(_: int, chunks: list[Tensor]) -> list[Tensor]:
        theta_0, *thetas = chunks
        changed, _count, alone = marks([theta - theta_0 for theta in thetas], p["epsilon"])
        return [*changed, *(own * (1 - alone) for own in changed)]

    return totals(terms, (base, *parents), p.dtype)


def _ratios(counts: Sequence[float]) -> list[float]:
    """Return ρᵢ; a model that changes no entry alone has an infinite ratio, or 0 if it shares none."""
    half = len(counts) // 2
    pairs = zip(counts[:half], counts[half:], strict=True)
    return [shared / (all_ - shared) if all_ > shared else (float("inf") if shared else 0.0) for all_, shared in pairs]
