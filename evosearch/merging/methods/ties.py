"""ties: trim, elect sign, merge (Yadav et al. 2023)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.election import contract_elected, elect_deltas
from evosearch.merging.magnitudes import Delta, Trim, trims
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Site, Slope, merge_method
from evosearch.recipe.shapes import MergekitForm, Param


def survey(sites: Sequence[Site]) -> list[list[Trim | None] | None] | None:
    """Compute, for `trim_scope: model`, one threshold per parent over all tensors with this scope.

    Returns:
        For each site one trim per parent; None for tensors that are trimmed on their own.

    Raises:
        CandidateError: A parent's density differs between those tensors.
    """
    jointly = [site for site in sites if site.parameters.choice("trim_scope") == "model"]
    if not jointly:
        return None
    by_parent: list[list[Trim | None]] = []
    for i in range(len(jointly[0].parents)):
        density = _one_density(jointly, i)
        if density >= 1:
            by_parent.append([None] * len(jointly))
            continue
        deltas, sizes = [], []
        for site in jointly:
            assert site.base is not None
            deltas.append(Delta(site.base, site.parents[i], site.parameters, i))
            sizes.append(site.base().numel())
        by_parent.append(trims(deltas, sizes, density))
    of_site = iter(zip(*by_parent, strict=True))
    return [list(next(of_site)) if site.parameters.choice("trim_scope") == "model" else None for site in sites]


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, with the kept entries and the elected signs held fixed (`contract_elected`)."""
    assert base is not None
    ones, count = [1.0] * len(parents), p.choice("sign_method") == "count"
    return contract_elected(base, parents, p, grad, _trimmed(base, parents, p), ones, count=count)


@merge_method(
    "ties",
    paper="arXiv:2306.01708",
    summary="Combines fine-tunes that interfere: keeps the largest changes of each and elects a sign per entry.",
    needs_base=True,
    parameters={
        "weight": Param(0.0, 1.5, per_model=True),
        "density": Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True),
        "normalize": Param(default=True, kind="bool"),
        "lambda": Param(0.0, 2.0, default=1.0),
        "sign_method": Param(default="magnitude", kind="choice", choices=("magnitude", "count")),
        "trim_scope": Param(default="tensor", kind="choice", choices=("tensor", "model")),
    },
    mergekit=MergekitForm("ties", fixed={"sign_method": "magnitude", "trim_scope": "tensor"}),
    survey=survey,
    differentiable=("weight", "lambda"),
    derivative=derivative,
)
def ties(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ · the average of the trimmed task vectors that agree with the elected sign, entry by entry.

    Each τᵢ = θᵢ − θ₀ keeps its top max(1, ⌊density·n⌋) entries by magnitude; of equal entries, those with the lowest
    index. n is the number of entries of the tensor, or of all tensors with `trim_scope: model` (see `survey`). The
    elected sign is that of Σ wᵢτᵢ (`sign_method: magnitude`) or of Σ sign(wᵢτᵢ) (`count`); a sum of zero elects plus.
    Agreeing entries wᵢτᵢ are summed and, with `normalize`, divided by the sum of their weights.
    """
    assert base is not None
    count = p.choice("sign_method") == "count"
    return elect_deltas(base, parents, p, _trimmed(base, parents, p), p.each("weight"), count=count)


def _trimmed(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[Trim | None]:
    """Return the trim of every task vector."""
    return [_trim(base, theta, p, i) for i, theta in enumerate(parents)]


def _trim(base: Tensor, theta: Tensor, p: Parameters, i: int) -> Trim | None:
    if p.choice("trim_scope") == "model":
        assert p.survey is not None, "trim_scope: model needs the survey"
        trim: Trim | None = p.survey[i]
        return trim
    return trims([Delta(lambda: base, lambda: theta, p, i)], [base.numel()], p.each("density")[i])[0]


def _one_density(sites: Sequence[Site], i: int) -> float:
    """Return the density of parent `i`, which must be the same at all sites that share one threshold."""
    density = sites[0].parameters.each("density")[i]
    for site in sites:
        other = site.parameters.each("density")[i]
        if other != density:
            reason = f"ties: model {i + 1} has density {density:g} at one tensor and {other:g} at another"
            raise CandidateError("materialize", f"{reason}; trim_scope: model needs one density for the whole model")
    return density
