"""dare_ties: thinned task vectors, merged by TIES' sign election (Yu et al. 2024)."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.merging.dare import PARAMETERS, drops
from evosearch.merging.election import elect_deltas
from evosearch.merging.parameters import Parameters
from evosearch.merging.registry import merge_method


@merge_method("dare_ties", paper="arXiv:2311.03099", needs_base=True, random=True, parameters=PARAMETERS)
def dare_ties(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """θ₀ + λ · the sum of those wᵢ rᵢ mᵢτᵢ that agree with the sign of their sum, entry by entry.

    The mask mᵢ keeps each entry with probability density; rᵢ makes up for the others (`rescale`, see `dare.drops`).
    Nothing is trimmed by magnitude. `normalize` divides by the sum of the weights of those that agree.
    """
    assert base is not None
    thinned = drops(base, parents, p)
    return elect_deltas(
        base,
        parents,
        p,
        lambda i, start, tau: thinned[i].apply(tau, start).mul_(p.each("weight")[i] * thinned[i].factor),
    )
