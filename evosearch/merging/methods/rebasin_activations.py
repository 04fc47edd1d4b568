"""rebasin_activations: a model with its units in the base's order, by activations (Li et al. 2015)."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.merging import weight_matching
from evosearch.merging.activation_matching import Inputs, match
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Site, merge_method
from evosearch.merging.symmetries import Axes, Fact, groups_at, reordered
from evosearch.merging.weight_matching import Pair
from evosearch.recipe.shapes import INPUTS, Param


def survey(sites: Sequence[Site]) -> list[Fact]:
    """Match the model's activations on the sample with the base's, then its weights.

    Raises:
        CandidateError: The symmetries of the architecture are not known.
    """
    axes, size = [groups_at(site) for site in sites], sites[0].parameters.head_size
    pairs = [(own, site.statistics) for own, site in zip(axes, sites, strict=True) if site.statistics]
    inputs = [Inputs(own, statistics[0], statistics[1]) for own, statistics in pairs]
    rows = next(site.parents[0]().shape[0] for own, site in zip(axes, sites, strict=True) if own[0] == "keys.0")
    found = match(inputs, size, rows // size)
    if sites[0].parameters["refine"]:
        found = weight_matching.match(list(map(_pair, axes, sites)), size, found)
    return [(own, found) for own in axes]


def _pair(axes: Axes, site: Site) -> Pair:
    assert site.base is not None
    return Pair(axes, site.base, site.parents[0])


@merge_method(
    "rebasin_activations",
    paper="arXiv:2209.04836",
    summary="Reorders a model's units to match the base's activations on a sample, and keeps its function.",
    needs_base=True,
    aligns=True,
    models=(1, 1),
    parameters={"refine": Param(default=True, kind="bool")},
    survey=survey,
    statistic=INPUTS,
)
def rebasin_activations(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return P(θ) for the permutation P of units whose activations correlate best with the base's on the sample.

    P(θ) computes the same function as θ. With `refine`, weight matching goes on from there.
    """
    return reordered(parents[0], p)
