"""rebasin_weights: a model with its units in the base's order, by weights (Git Re-Basin, Ainsworth et al. 2023)."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Site, merge_method
from evosearch.merging.symmetries import Fact, groups_at, reordered
from evosearch.merging.weight_matching import Pair, match


def survey(sites: Sequence[Site]) -> list[Fact]:
    """Match the model's weights with the base's.

    Raises:
        CandidateError: The symmetries of the architecture are not known.
    """
    pairs = []
    for site in sites:
        assert site.base is not None
        pairs.append(Pair(groups_at(site), site.base, site.parents[0]))
    found = match(pairs, sites[0].parameters.head_size)
    return [(pair.axes, found) for pair in pairs]


@merge_method(
    "rebasin_weights",
    paper="arXiv:2209.04836",
    summary="Reorders a model's units to match the base's weights, and keeps its function; then merge the result.",
    needs_base=True,
    aligns=True,
    models=(1, 1),
    parameters={},
    survey=survey,
)
def rebasin_weights(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return P(θ) for a permutation P of units with great Σ ⟨θ₀, P(θ)⟩  (Ainsworth et al. 2023).

    P(θ) computes the same function as θ. P is a local optimum, see `weight_matching.py`.
    """
    return reordered(parents[0], p)
