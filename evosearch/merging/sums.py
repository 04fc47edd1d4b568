"""Weighted sums of task vectors and their derivatives, shared by task_arithmetic and dare_linear."""

import math
from collections.abc import Sequence

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.compiled import fused
from evosearch.merging.kernels import Change, add_multiple, at_least_float32, elementwise, same, total
from evosearch.merging.method_parameters import Parameters


def scales(method: str, p: Parameters) -> list[float]:
    """Return λwᵢ, or λwᵢ / Σw with `normalize`. Weights that are all zero stay zero and leave the base unchanged.

    Raises:
        CandidateError: With `normalize`, weights that are not all zero sum to zero.
    """
    weights, divisor = p.each("weight"), _divisor(p)
    if p["normalize"] and any(weights) and abs(divisor) <= 1e-6 * sum(abs(w) for w in weights):
        reason = f"{method}: weights {weights} sum to {divisor:g}, which normalize divides by"
        raise CandidateError("materialize", reason)
    return [p["lambda"] * w / divisor for w in weights]


def chain(p: Parameters, slopes: Sequence[float]) -> dict[str, float | tuple[float, ...]]:
    """Return dL/dλ and dL/dwᵢ from the derivatives dL/dfᵢ in fᵢ = λwᵢ / S, with S = Σw with `normalize`, else 1.

    dL/dλ = Σ dL/dfᵢ wᵢ/S and dL/dwᵢ = λ/S (dL/dfᵢ − dL/dλ), without the last term if S is 1 for any weights. Weights
    that are all zero, where `normalize` has no effect, have the derivative without it.
    """
    weights, divisor, lam = p.each("weight"), _divisor(p), p["lambda"]
    mean = sum(slope * w for slope, w in zip(slopes, weights, strict=True)) / divisor
    moved = mean if p["normalize"] and any(weights) else 0.0  # by the change of S
    return {"weight": tuple(lam / divisor * (slope - moved) for slope in slopes), "lambda": mean}


def _divisor(p: Parameters) -> float:
    weights = p.each("weight")
    return sum(weights) if p["normalize"] and any(weights) else 1.0


def weighted_sum(tensors: Sequence[Tensor], factors: Sequence[float], p: Parameters) -> Tensor:
    """Return Σ fᵢxᵢ."""
    if fused.applies(p.dtype, tensors, p.sink):
        return fused.weighted_sum(tensors, factors, p.sink)

    def add(_: int, chunks: list[Tensor]) -> Tensor:
        summed = chunks[0] * factors[0]
        for x, factor in zip(chunks[1:], factors[1:], strict=True):
            add_multiple(summed, x, factor)
        return summed

    return elementwise(add, tensors, p.dtype, sink=p.sink)


def add_deltas(
    base: Tensor,
    parents: Sequence[Tensor],
    factors: Sequence[float],
    p: Parameters,
    changes: Sequence[Change | None] | None = None,
    row: int = 1,
) -> Tensor:
    """Return θ₀ + Σ fᵢ cᵢ(τᵢ) with τᵢ = θᵢ − θ₀.

    A parent that shares the base's tensor is skipped. Its zeros are added at the end of the sum, so that the sign of a
    zero does not depend on how a checkpoint is stored.

    Args:
        base: θ₀.
        parents: θᵢ.
        factors: fᵢ, one per parent.
        p: Parameters; only the arithmetic's type and the sink are used.
        changes: cᵢ; None is the identity.
        row: Length of the rows that the changes receive completely.
    """
    moved = [i for i, theta in enumerate(parents) if not same(base, theta)]
    still = [math.copysign(0.0, factor) for i, factor in enumerate(factors) if i not in moved]
    zero = sum(still[1:], start=still[0]) if still else None
    if moved and fused.applies(p.dtype, (base, *parents), p.sink):
        own = None if changes is None else [changes[i] for i in moved]
        found = fused.add(base, [parents[i] for i in moved], [factors[i] for i in moved], own, zero, p.sink)
        if found is not None:
            return found

    def add(start: int, chunks: list[Tensor]) -> Tensor:
        theta_0, *thetas = chunks
        summed: Tensor | None = None
        for i, theta in zip(moved, thetas, strict=True):
            tau = theta - theta_0
            change = changes[i] if changes else None
            tau = change.apply(tau, start) if change else tau
            summed = tau.mul_(factors[i]) if summed is None else add_multiple(summed, tau, factors[i])
        if summed is None:
            assert zero is not None
            return theta_0 + zero
        return (summed if zero is None else summed.add_(zero)).add_(theta_0)

    return elementwise(add, (base, *(parents[i] for i in moved)), p.dtype, row, p.sink)


def contract_deltas(
    base: Tensor,
    parents: Sequence[Tensor],
    p: Parameters,
    grad: Tensor,
    changes: Sequence[Change | None] | None = None,
    row: int = 1,
) -> list[float]:
    """Return ⟨dL/dθ, cᵢ(τᵢ)⟩ for every parent, the derivative in the factor fᵢ of `add_deltas`.

    Args:
        base: θ₀.
        parents: θᵢ; one that shares the base's tensor has the derivative 0.
        p: Parameters; only the arithmetic's type is used.
        grad: dL/dθ of the merged tensor.
        changes: cᵢ, as in `add_deltas`.
        row: Length of the rows that the changes receive completely.
    """
    dtype = at_least_float32(p.dtype)

    def contract(i: int, theta: Tensor) -> float:
        change = changes[i] if changes else None

        def terms(start: int, chunks: list[Tensor]) -> Tensor:
            slope, theta_0, theta_i = chunks
            tau = theta_i - theta_0
            return (change.apply(tau, start) if change else tau).mul_(slope)

        return 0.0 if same(base, theta) else total(terms, (grad, base, theta), dtype, row)

    return [contract(i, theta) for i, theta in enumerate(parents)]
