"""ties: trim, elect sign, merge (Yadav et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from evosearch.merging.kernels import elementwise, kth_largest
from evosearch.merging.parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import Param

SEARCH = 1 << 20  # entries looked through at once for the last one to stay


@dataclass(frozen=True)
class Trim:
    """Which entries of a task vector stay: |τ| above `below`, and from index `end` on only those above `cut`.

    `below` is the next smaller number to `cut`, so that entries equal to the cut stay up to `end`.
    """

    cut: float
    below: float
    end: int

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """A chunk that begins at index `start`, what is trimmed set to zero. NaN stays, and shows in the result."""
        before = min(max(self.end - start, 0), tau.numel())  # entries of this chunk before `end`
        if before == tau.numel():
            return hardshrink(tau, self.below)
        if before == 0:
            return hardshrink(tau, self.cut)
        return torch.cat((hardshrink(tau[:before], self.below), hardshrink(tau[before:], self.cut)))


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
            deltas.append((trim.apply(tau, start) if trim else tau).mul_(w))  # wᵢτᵢ
            vote.add_(deltas[-1].sign() if count else deltas[-1])
        # Signs instead of comparisons and masks: those take several times as long on a CPU.
        sign = vote.sign_().add_(0.5).sign_()  # ±1, plus at zero
        merged, divisor = torch.zeros_like(theta_0), torch.zeros_like(theta_0)
        for delta, w in zip(deltas, weights, strict=True):
            agreeing = delta.mul_(sign).clamp_(min=0)  # |wᵢτᵢ| where its sign was elected, else 0
            merged.add_(agreeing)
            if normalize:
                divisor.add_(agreeing.sign_(), alpha=w)  # Σ wᵢ over those that agree
        if normalize:
            merged.div_(divisor.add_(divisor.sign().abs_().neg_().add_(1)))  # a divisor of 0 becomes 1
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
    if cut == 0:
        return None  # what would be trimmed is zero
    below = torch.nextafter(torch.tensor(cut, dtype=dtype), torch.tensor(0.0, dtype=dtype)).item()
    if kept >= equal:  # more than there are only beside NaN, which no comparison trims: the result shows it
        return Trim(cut, below, n)
    sizes = elementwise(size, (base, theta), torch.float32).view(-1)  # again: selecting has shuffled them
    return Trim(cut, below, end=_index_of(sizes, cut, kept) + 1)


def _index_of(values: Tensor, wanted: float, count: int) -> int:
    """The index at which `wanted` occurs for the `count`-th time."""
    for start in range(0, values.numel(), SEARCH):
        equal = values[start : start + SEARCH] == wanted
        found = int(equal.count_nonzero())
        if found >= count:
            return start + int(equal.nonzero()[count - 1])
        count -= found
    raise AssertionError("it occurs less often")
