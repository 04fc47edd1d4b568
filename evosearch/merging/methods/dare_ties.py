"""dare_ties: randomly thinned task vectors, merged with the sign election of TIES (Yu et al. 2024)."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.merging.dare import INEXACT, PARAMETERS, SPELLED, drops
from evosearch.merging.election import elect_deltas
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import MergekitForm


@merge_method(
    "dare_ties",
    paper="arXiv:2311.03099",
    summary="Combines many fine-tunes with conflicting changes: thins each at random, then elects a sign per entry.",
    needs_base=True,
    random=True,
    parameters=PARAMETERS,
    mergekit=MergekitForm("dare_ties", spelled=SPELLED, inexact=INEXACT),
)
def dare_ties(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ · the sum of those wᵢ rᵢ mᵢτᵢ that agree with the sign of their sum, entry by entry.

    The mask mᵢ keeps each entry with probability `density`; rᵢ compensates for the dropped ones (`rescale`, see
    `dare.drops`). No entry is trimmed by magnitude. `normalize` divides by the sum of the weights that agree.
    """
    assert base is not None
    thinned = drops(base, parents, p)
    return elect_deltas(
        base,
        parents,
        p,
        lambda i, start, tau: thinned[i].apply(tau, start).mul_(p.each("weight")[i] * thinned[i].factor),
    )
