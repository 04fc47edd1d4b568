"""ties: trim, elect sign, merge (Yadav et al. 2023)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.compiled import library
from evosearch.merging.election import SIGN_METHOD
from evosearch.merging.kernels import same
from evosearch.merging.magnitudes import Delta, Trim, trims
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Site, Slope, merge_method
from evosearch.merging.sparse import contract_elected_kept, elect_kept, l1_factors
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
    """Return dL/dwᵢ and dL/dλ, with the kept entries and the elected signs held fixed (`contract_elected_kept`)."""
    assert base is not None
    return contract_elected_kept(base, parents, p, grad, _trimmed(base, parents, p))


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
        "rescale": Param(default=False, kind="choice", choices=(False, "l1")),
        "sign_method": SIGN_METHOD,
        "trim_scope": Param(default="tensor", kind="choice", choices=("tensor", "model")),
    },
    mergekit=MergekitForm(
        "ties", fixed={"sign_method": "magnitude", "trim_scope": "tensor"}, spelled={"rescale": {"l1": True}}
    ),
    survey=survey,
    differentiable=("weight", "lambda"),
    derivative=derivative,
    norms=True,
)
def ties(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ · the average of the trimmed task vectors that agree with the elected sign, entry by entry.

    Each τᵢ = θᵢ − θ₀ keeps its top max(1, ⌊density·n⌋) entries by magnitude; of equal entries, those with the lowest
    index. n is the number of entries of the tensor, or of all tensors with `trim_scope: model` (see `survey`). With
    `rescale: l1`, what is left is multiplied by the factor that restores the L1 norm of τᵢ in this tensor, as in
    mergekit. The elected sign is that of Σ wᵢτᵢ (`sign_method: magnitude`) or of Σ sign(wᵢτᵢ) (`count`); a sum of zero
    elects plus, but no sign with `count_strict`. Agreeing entries wᵢτᵢ are summed and, with `normalize`, divided by the
    sum of their weights.
    """
    assert base is not None
    return elect_kept(base, parents, p, _trimmed(base, parents, p))


@dataclass(frozen=True)
class Trimmed:
    """The entries of one task vector that are kept."""

    trim: Trim | None
    factor: float = 1.0

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Trim a chunk that begins at index `start`."""
        return self.trim.apply(tau, start) if self.trim else tau

    def compiled(self) -> library.Change:
        """Return the description for the compiled kernels."""
        return self.trim.compiled() if self.trim else library.Change()


def _trimmed(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[Trimmed]:
    """Return the kept entries of every task vector."""
    found = [Trimmed(_trim(base, theta, p, i)) for i, theta in enumerate(parents)]
    if p.choice("rescale") == "l1":
        trimmed = {i: kept for i, kept in enumerate(found) if kept.trim and not same(base, parents[i])}
        for i, factor in l1_factors(base, parents, p, trimmed).items():
            found[i] = replace(found[i], factor=factor)
    return found


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
