"""The sign election of TIES: task vectors that pull an entry both ways do not average each other out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evosearch.merging.kernels import elementwise, same
from evosearch.merging.parameters import Parameters


def elect_and_sum(
    deltas: Sequence[Tensor], weights: Sequence[float], *, count: bool = False, normalize: bool = False
) -> Tensor:
    """The weighted task vectors wᵢτᵢ, summed entry by entry over those that have the elected sign.

    The sign elected is that of Σ wᵢτᵢ, or with `count` of Σ sign(wᵢτᵢ); where the sum is zero it is plus
    (Yadav et al. 2023, algorithm 1). A delta of zeros changes nothing.

    Args:
        deltas: wᵢτᵢ, at least one, all of one shape; they are written over.
        weights: wᵢ.
        normalize: divide by the sum of the weights of those that agree.
    """
    vote = torch.zeros_like(deltas[0])
    for delta in deltas:
        vote.add_(delta.sign() if count else delta)
    # Signs instead of comparisons and masks: those take several times as long on a CPU.
    sign = vote.sign_().add_(0.5).sign_()  # ±1, plus at zero
    merged, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, w in zip(deltas, weights, strict=True):
        agreeing = delta.mul_(sign).clamp_(min=0)  # |wᵢτᵢ| where its sign was elected, else 0
        merged.add_(agreeing)
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=w)  # Σ wᵢ over those that agree
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
    """θ₀ + λ · `elect_and_sum` of the changed and weighted task vectors, in chunks.

    A parent whose tensor is the base's own is passed over: its τ is zero and changes nothing.

    Args:
        change: (parent, index of the chunk's first element, τ) → wᵢ times what is left of τ, a new tensor or τ itself;
            zeros have to stay zeros.
        p: its `weight`, `lambda` and `normalize` are used.
    """
    lam, normalize = p["lambda"], bool(p["normalize"])
    moved = [i for i, theta in enumerate(parents) if not same(base, theta)]
    if not moved:
        return base.to(p.dtype) + 0.0 * lam  # not the base itself: -0 becomes 0, as below
    weights = [p.each("weight")[i] for i in moved]

    def elect(start: int, chunks: list[Tensor]) -> Tensor:
        theta_0, *thetas = chunks
        deltas = [change(i, start, theta - theta_0) for i, theta in zip(moved, thetas, strict=True)]
        return elect_and_sum(deltas, weights, count=count, normalize=normalize).mul_(lam).add_(theta_0)

    return elementwise(elect, (base, *(parents[i] for i in moved)), p.dtype)
