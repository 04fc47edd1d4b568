"""dare_linear: add thinned task vectors to the base (Yu et al. 2024)."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.merging.dare import PARAMETERS, drops
from evosearch.merging.parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.merging.sums import add_deltas, scales


@merge_method("dare_linear", paper="arXiv:2311.03099", needs_base=True, random=True, parameters=PARAMETERS)
def dare_linear(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """θ₀ + λ Σ wᵢ rᵢ mᵢτᵢ with τᵢ = θᵢ − θ₀; `normalize` divides by Σ wᵢ.

    The mask mᵢ keeps each entry with probability density; rᵢ makes up for the others (`rescale`, see `dare.drops`).

    Raises:
        CandidateError: weights that are not all zero sum to nothing under `normalize`.
    """
    assert base is not None
    thinned = drops(base, parents, p)
    factors = [scale * drop.factor for scale, drop in zip(scales("dare_linear", p), thinned, strict=True)]  # λwᵢrᵢ
    return add_deltas(base, parents, factors, p, lambda i, start, tau: thinned[i].apply(tau, start))
