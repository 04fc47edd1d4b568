"""Reinforced agent merging (RAM, Yuan et al. 2026): average the entries that several models change, keep the others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evosearch.merging.compiled import fused
from evosearch.merging.kernels import elementwise
from evosearch.merging.method_parameters import Parameters
from evosearch.recipe.shapes import Param

EPSILON = Param(0.0, 1e-3, default=1e-5)


def marks(taus: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """Mark the entries that models change by more than `epsilon`.

    Returns:
        mᵢ: 1 where |τᵢ| > epsilon, else 0; Σ mᵢ; and 1 where exactly one model changes the entry, else 0.
    """
    changed = [(tau.abs() > epsilon).to(tau.dtype) for tau in taus]
    count = torch.zeros_like(changed[0])
    for one in changed:
        count.add_(one)
    return changed, count, (count == 1).to(count.dtype)


def add_changes(
    base: Tensor, parents: Sequence[Tensor], epsilon: float, scales: Sequence[float], p: Parameters
) -> Tensor:
    """Return θ₀ + Σ mᵢ sᵢτᵢ / max(1, Σ mᵢ), where sᵢ is the model's scale in entries that only it changes, else 1."""
    if fused.applies(p.dtype, (base, *parents), p.sink):
        return fused.reinforce(base, parents, epsilon, scales, p.sink)

    def add(_: int, chunks: list[Tensor]) -> Tensor:
        theta_0, *thetas = chunks
        taus = [theta - theta_0 for theta in thetas]
        changed, count, alone = marks(taus, epsilon)
        merged = torch.zeros_like(theta_0)
        for tau, own, scale in zip(taus, changed, scales, strict=True):
            merged.add_(tau.mul_(own) if scale == 1 else tau.mul_(own).mul_(alone * (scale - 1) + 1))
        return merged.div_(count.clamp_(min=1)).add_(theta_0)

    return elementwise(add, (base, *parents), p.dtype, sink=p.sink)
