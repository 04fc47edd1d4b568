"""Weighted sums of task vectors, shared by task_arithmetic and dare_linear."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.kernels import elementwise, same
from evosearch.merging.method_parameters import Parameters

Change = Callable[[int, int, Tensor], Tensor]  # (parent, index of the chunk's first element, τ) → changed τ


def scales(method: str, p: Parameters) -> list[float]:
    """Return λwᵢ, or λwᵢ / Σw with `normalize`. Weights that are all zero stay zero and leave the base unchanged.

    Raises:
        CandidateError: With `normalize`, weights that are not all zero sum to zero.
    """
    weights, total = p.each("weight"), 1.0
    if p["normalize"] and any(weights):
        total = sum(weights)
        if abs(total) <= 1e-6 * sum(abs(w) for w in weights):
            reason = f"{method}: weights {weights} sum to {total:g}, which normalize divides by"
            raise CandidateError("materialize", reason)
    return [p["lambda"] * w / total for w in weights]


def add_deltas(
    base: Tensor, parents: Sequence[Tensor], factors: Sequence[float], p: Parameters, change: Change | None = None
) -> Tensor:
    """Return θ₀ + Σ fᵢ cᵢ(τᵢ) with τᵢ = θᵢ − θ₀, where c is `change`.

    A parent that shares the base's tensor is skipped. Its zeros are added at the end of the sum, so that the sign of a
    zero does not depend on how a checkpoint is stored.

    Args:
        base: θ₀.
        parents: θᵢ.
        factors: fᵢ, one per parent.
        p: Parameters; only the arithmetic's type is used.
        change: c, in place or as a new tensor; it must keep zeros. By default the identity.
    """
    moved = [i for i, theta in enumerate(parents) if not same(base, theta)]
    still = [math.copysign(0.0, factor) for i, factor in enumerate(factors) if i not in moved]

    def add(start: int, chunks: list[Tensor]) -> Tensor:
        theta_0, *thetas = chunks
        summed: Tensor | None = None
        for i, theta in zip(moved, thetas, strict=True):
            tau = theta - theta_0
            tau = change(i, start, tau) if change else tau
            summed = tau.mul_(factors[i]) if summed is None else summed.add_(tau, alpha=factors[i])
        zero = sum(still[1:], start=still[0]) if still else None
        if summed is None:
            assert zero is not None
            return theta_0 + zero
        return (summed if zero is None else summed.add_(zero)).add_(theta_0)

    return elementwise(add, (base, *(parents[i] for i in moved)), p.dtype)
