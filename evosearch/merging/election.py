"""Sign election (TIES, Yadav et al. 2023): sum only the task vectors that agree on an entry's sign."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evosearch.merging.kernels import elementwise, same
from evosearch.merging.method_parameters import Parameters


def elect_and_sum(
    deltas: Sequence[Tensor], weights: Sequence[float], *, count: bool = False, normalize: bool = False
) -> Tensor:
    """Sum the weighted task vectors wᵢτᵢ, entry by entry, over those with the elected sign.

    The elected sign is that of Σ wᵢτᵢ, or of Σ sign(wᵢτᵢ) with `count`; a sum of zero elects plus (Yadav et al. 2023,
    algorithm 1). A delta of zeros does not change the result.

    Args:
        deltas: wᵢτᵢ, at least one, all of one shape. They are overwritten.
        weights: wᵢ.
        count: Count signs instead of summing values.
        normalize: Divide each entry by the sum of the weights that agree on its sign.
    """
    vote = torch.zeros_like(deltas[0])
    for delta in deltas:
        vote.add_(delta.sign() if count else delta)
    # Arithmetic on signs: comparisons and masks take several times as long on a CPU.
    sign = vote.sign_().add_(0.5).sign_()  # ±1, plus at zero
    merged, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, w in zip(deltas, weights, strict=True):
        agreeing = delta.mul_(sign).clamp_(min=0)  # |wᵢτᵢ| where it has the elected sign, else 0
        merged.add_(agreeing)
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=w)  # Σ wᵢ over the agreeing
    if normalize:
        merged.div_(divisor.add_(divisor.sign().abs_().neg_().add_(1)))  # a divisor of 0 becomes 1
    return merged.mul_(sign)


def elect_deltas(
    base: Tensor,
    parents: Sequence[Tensor],
    p: Parameters,
    change: Callable[[int, int, Tensor], Tensor],
    *,
    count: bool = False,
) -> Tensor:
    """Return θ₀ + λ · `elect_and_sum` of the changed and weighted task vectors, computed in chunks.

    A parent that shares the base's tensor is skipped: its τ is zero and does not change the result.

    Args:
        base: θ₀.
        parents: θᵢ.
        p: Parameters; `weight`, `lambda` and `normalize` are used.
        change: (parent, index of the chunk's first element, τ) → the changed τ times wᵢ, in place or as a new tensor.
            Zeros must stay zeros.
        count: Count signs instead of summing values.
    """
    lam, normalize = p["lambda"], bool(p["normalize"])
    moved = [i for i, theta in enumerate(parents) if not same(base, theta)]
    if not moved:
        return base.to(p.dtype) + 0.0 * lam  # a new tensor in which -0 becomes 0, as below
    weights = [p.each("weight")[i] for i in moved]

    def elect(start: int, chunks: list[Tensor]) -> Tensor:
        theta_0, *thetas = chunks
        deltas = [change(i, start, theta - theta_0) for i, theta in zip(moved, thetas, strict=True)]
        return elect_and_sum(deltas, weights, count=count, normalize=normalize).mul_(lam).add_(theta_0)

    return elementwise(elect, (base, *(parents[i] for i in moved)), p.dtype)
