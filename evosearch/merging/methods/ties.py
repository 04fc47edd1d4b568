"""ties: trim, elect sign, merge (Yadav et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evosearch.merging.kernels import elementwise, kth_largest
from evosearch.merging.parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import Param


@dataclass(frozen=True)
class Trim:
    """Which entries of a task vector go: |τ| below `cut`, and of those equal to it the ones after index `last`."""

    cut: float
    last: int | None = None  # None keeps all that equal the cut

    def apply(self, tau: Tensor, start: int) -> None:
        """Zero the trimmed entries of a chunk that begins at index `start`. NaN is kept, to be found in the result."""
        size = tau.abs()
        drop = size < self.cut
        if self.last is not None:
            index = torch.arange(start, start + tau.numel(), device=tau.device)
            drop |= (size == self.cut) & (index > self.last)
        tau.masked_fill_(drop, 0.0)


@merge_method(
    "ties",
    paper="arXiv:2306.01708",
    needs_base=True,
    parameters={
        "weight": Param(0.0, 1.5, per_model=True),
        "density": Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True),
        "normalize": Param(default=True, kind="bool"),
        "lambda": Param(0.0, 2.0, default=1.0),
        "sign_method": Param(default="magnitude", kind="choice", choices=("magnitude", "count")),
        "trim_scope": Param(default="tensor", kind="choice", choices=("tensor",)),
    },
)
def ties(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """θ₀ + λ · the average of those trimmed task vectors that agree with the elected sign, entry by entry.

    Each τᵢ = θᵢ − θ₀ keeps its top max(1, ⌊density·n⌋) entries by magnitude, of equal ones those of lowest index. The
    sign elected is that of Σ wᵢτᵢ (`sign_method: magnitude`) or of Σ sign(wᵢτᵢ) (`count`); where the sum is zero it is
    plus. Agreeing entries are summed, wᵢτᵢ, and under `normalize` divided by the sum of their weights.
    """
    assert base is not None
    weights, normalize, lam, count = p.each("weight"), p["normalize"], p["lambda"], p.choice("sign_method") == "count"
    trims = [_trim(base, theta, density, p.dtype) for theta, density in zip(parents, p.each("density"), strict=True)]

    def elect_and_merge(start: int, chunks: list[Tensor]) -> Tensor:
        theta_0, *thetas = chunks
        deltas, vote = [], torch.zeros_like(theta_0)
        for theta, w, trim in zip(thetas, weights, trims, strict=True):
            tau = theta - theta_0
            if trim:
                trim.apply(tau, start)
            deltas.append(tau.mul_(w))  # wᵢτᵢ
            vote.add_(tau.sign() if count else tau)
        sign = (vote >= 0).to(vote.dtype).mul_(2).sub_(1)  # ±1
        merged, divisor = torch.zeros_like(theta_0), torch.zeros_like(theta_0)
        for delta, w in zip(deltas, weights, strict=True):
            agreeing = delta.mul_(sign).clamp_(min=0)  # |wᵢτᵢ| where its sign was elected, else 0
            merged.add_(agreeing)
            if normalize:
                divisor.add_(agreeing > 0, alpha=w)  # Σ wᵢ over those that agree
        if normalize:
            merged.div_(divisor.masked_fill_(divisor == 0, 1))
        return merged.mul_(sign).mul_(lam).add_(theta_0)

    return elementwise(elect_and_merge, (base, *parents), p.dtype)


def _trim(base: Tensor, theta: Tensor, density: float, dtype: torch.dtype) -> Trim | None:
    """The trim that leaves the top max(1, ⌊density·n⌋) entries of τ = θ − θ₀, or None where all stay."""
    n = base.numel()
    k = max(1, int(density * n))
    if k >= n:
        return None

    def size(_: int, chunks: list[Tensor]) -> Tensor:
        return (chunks[1].to(dtype) - chunks[0].to(dtype)).abs_().float()

    cut, kept, equal = kth_largest(elementwise(size, (base, theta), torch.float32).view(-1), k)
    if kept >= equal:  # more than there are only beside NaN, which no comparison trims: the result shows it
        return Trim(cut)
    sizes = elementwise(size, (base, theta), torch.float32).view(-1)  # again, in order: equals are rare
    return Trim(cut, last=int((sizes == cut).nonzero()[kept - 1]))
