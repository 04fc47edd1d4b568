"""Sign election (TIES, Yadav et al. 2023): sum only the task vectors that agree on an entry's sign."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evosearch.merging.compiled import fused
from evosearch.merging.kernels import Change, add_multiple, at_least_float32, elementwise, same, totals
from evosearch.merging.method_parameters import Parameters
from evosearch.recipe.shapes import Param

SIGN_METHOD = Param(default="magnitude", kind="choice", choices=("magnitude", "count", "count_strict"))


def elect_and_sum(
    deltas: Sequence[Tensor], weights: Sequence[float], *, sign_method: str = "magnitude", normalize: bool = False
) -> Tensor:
    """Sum the weighted task vectors wᵢτᵢ, entry by entry, over those with the elected sign.

    The elected sign is that of Σ wᵢτᵢ (`magnitude`, Yadav et al. 2023, algorithm 1) or of Σ sign(wᵢτᵢ) (`count`); a sum
    of zero elects plus. With `count_strict` it elects no sign, and the entry is 0. A delta of zeros has no effect.

    Args:
        deltas: wᵢτᵢ, at least one, all of one shape. They are overwritten.
        weights: wᵢ.
        sign_method: `magnitude`, `count` or `count_strict`.
        normalize: Divide each entry by the sum of the weights that agree on its sign.
    """
    # Arithmetic on signs: comparisons and masks take several times as long on a CPU.
    sign = _elected(vote(deltas, sign_method), sign_method)
    merged, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, w in zip(deltas, weights, strict=True):
        agreeing = delta.mul_(sign).clamp_(min=0)  # |wᵢτᵢ| where it has the elected sign, else 0
        merged.add_(agreeing)
        if normalize:
            add_multiple(divisor, agreeing.sign_(), w)  # Σ wᵢ over the agreeing
    if normalize:
        merged.div_(nonzero(divisor))
    return merged.mul_(sign)


def elect_deltas(
    base: Tensor,
    parents: Sequence[Tensor],
    p: Parameters,
    changes: Sequence[Change | None],
    factors: Sequence[float],
    *,
    row: int = 1,
) -> Tensor:
    """Return θ₀ + λ · `elect_and_sum` of the changed and weighted task vectors, computed in chunks.

    A parent that shares the base's tensor is skipped: its τ is zero and does not change the result.

    Args:
        base: θ₀.
        parents: θᵢ.
        p: Parameters; `weight`, `lambda`, `normalize`, `sign_method` and the sink are used.
        changes: What changes each τᵢ; None is the identity.
        factors: wᵢ times a positive constant, which multiplies the changed τᵢ.
        row: Length of the rows that the changes receive completely.
    """
    lam, normalize, sign_method = p["lambda"], bool(p["normalize"]), p.choice("sign_method")
    moved = [i for i, theta in enumerate(parents) if not same(base, theta)]
    if not moved:
        return base.to(p.dtype) + 0.0 * lam  # a new tensor in which -0 becomes 0, as below
    weights, own = [p.each("weight")[i] for i in moved], [changes[i] for i in moved]
    if fused.applies(p.dtype, (base, *parents), p.sink):
        ends, scaled = [parents[i] for i in moved], [factors[i] for i in moved]
        settings = (lam, sign_method, normalize)
        found = fused.elect(base, ends, scaled, weights, own, settings, p.sink)
        if found is not None:
            return found

    def elect(start: int, chunks: list[Tensor]) -> Tensor:
        theta_0, *thetas = chunks
        taus = [_changed(change, theta - theta_0, start) for change, theta in zip(own, thetas, strict=True)]
        deltas = [tau.mul_(factors[i]) for i, tau in zip(moved, taus, strict=True)]
        return elect_and_sum(deltas, weights, sign_method=sign_method, normalize=normalize).mul_(lam).add_(theta_0)

    return elementwise(elect, (base, *(parents[i] for i in moved)), p.dtype, row, p.sink)


def _changed(change: Change | None, tau: Tensor, start: int) -> Tensor:
    return tau if change is None else change.apply(tau, start)


def contract_elected(
    base: Tensor,
    parents: Sequence[Tensor],
    p: Parameters,
    grad: Tensor,
    changes: Sequence[Change | None],
    constants: Sequence[float],
    *,
    row: int = 1,
) -> dict[str, float | tuple[float, ...]]:
    """Return dL/dwᵢ and dL/dλ of `elect_deltas`, with the elected signs and the agreeing entries held fixed.

    Let v = Σ aᵢwᵢcᵢτᵢ / D, where aᵢ is 1 for entries that agree, cᵢ is a constant, and D is Σ aᵢwᵢ with `normalize`,
    else 1. Then dL/dλ = ⟨dL/dθ, v⟩ and dL/dwᵢ = λ ⟨dL/dθ, aᵢ(cᵢτᵢ − v)/D⟩, without `− v` where D does not depend on the
    weights. In a weight of zero the derivative is that from above: its entries agree as for a small positive weight.

    Args:
        base: θ₀.
        parents: θᵢ; one that shares the base's tensor has the derivative 0.
        p: Parameters; `weight`, `lambda`, `normalize` and `sign_method` are used.
        grad: dL/dθ of the merged tensor.
        changes: What changes each τᵢ, as in `elect_deltas`.
        constants: cᵢ, positive; `elect_deltas` has the factors wᵢcᵢ.
        row: Length of the rows that the changes receive completely.
    """
    moved = [i for i, theta in enumerate(parents) if not same(base, theta)]
    if not moved:
        return {"weight": (0.0,) * len(parents), "lambda": 0.0}
    weights, dtype = [p.each("weight")[i] for i in moved], at_least_float32(p.dtype)

    def terms(start: int, chunks: list[Tensor]) -> list[Tensor]:
        slope, *ends = chunks
        theta_0, *thetas = [end.to(p.dtype) for end in ends]  # decisions in the type in which the merge makes them
        moves = {i: theta - theta_0 for i, theta in zip(moved, thetas, strict=True)}
        taus = [_changed(changes[i], tau, start).mul_(constants[i]) for i, tau in moves.items()]
        agreeing = [a.to(dtype) for a in _agreeing(taus, weights, p.choice("sign_method"))]
        changed = [tau.to(dtype) for tau in taus]  # cᵢτᵢ
        return [slope * own for own in _by_parameter(changed, agreeing, weights, p["lambda"], bool(p["normalize"]))]

    *found, of_lambda = totals(terms, (grad, base, *(parents[i] for i in moved)), dtype, row)
    slopes = dict(zip(moved, found, strict=True))
    return {"weight": tuple(slopes.get(i, 0.0) for i in range(len(parents))), "lambda": of_lambda}


def _agreeing(taus: Sequence[Tensor], weights: Sequence[float], sign_method: str) -> list[Tensor]:
    """Return aᵢ: 1 where wᵢτᵢ has the elected sign, else 0. A weight of zero agrees like a small positive one."""
    found = vote([tau * w for tau, w in zip(taus, weights, strict=True)], sign_method)
    small = [tau for tau, w in zip(taus, weights, strict=True) if w == 0]
    if small:
        found = found.mul_(2).add_(vote(small, sign_method))  # they decide where the others do not
    sign = _elected(found, sign_method)
    return [(tau * sign * (w or 1.0)).clamp_(min=0).sign_() for tau, w in zip(taus, weights, strict=True)]


def vote(deltas: Sequence[Tensor], sign_method: str = "magnitude") -> Tensor:
    """Return the sign of Σ wᵢτᵢ, or of Σ sign(wᵢτᵢ) if signs are counted: ±1 or 0."""
    found = torch.zeros_like(deltas[0])
    for delta in deltas:
        found.add_(delta if sign_method == "magnitude" else delta.sign())
    return found.sign_()


def _elected(votes: Tensor, sign_method: str) -> Tensor:
    """Return the elected signs, in place: ±1, plus where the votes are zero; with `count_strict`, 0 there."""
    return votes.sign_() if sign_method == "count_strict" else votes.add_(0.5).sign_()


def _by_parameter(
    taus: Sequence[Tensor], agreeing: Sequence[Tensor], weights: Sequence[float], lam: float, normalize: bool
) -> list[Tensor]:
    """Return the derivative of every entry of the merge in each wᵢ, and last in λ."""
    value, divisor = torch.zeros_like(taus[0]), torch.zeros_like(taus[0])
    for tau, a, w in zip(taus, agreeing, weights, strict=True):
        value.add_(a * tau, alpha=w)  # Σ aᵢwᵢcᵢτᵢ
        divisor.add_(a, alpha=w)
    if not normalize:
        return [*(lam * a * tau for tau, a in zip(taus, agreeing, strict=True)), value]
    divides = divisor.sign().abs()  # 0 where the merge divides by 1 instead of by a sum of 0
    value.div_(nonzero(divisor))
    moved = value * divides  # by the change of D
    return [*(lam * a * (tau - moved) / divisor for tau, a in zip(taus, agreeing, strict=True)), value]


def nonzero(divisor: Tensor) -> Tensor:
    """Replace zeros by 1, in place."""
    return divisor.add_(divisor.sign().abs_().neg_().add_(1))
