"""The "zip" of ZipIt!: a layer of two models whose outputs are merged and whose inputs are unmerged.

    W* = Σ_m M_m W_m U_m,        b* = Σ_m M_m b_m        (Stoica et al. 2023, section 4.1)

Row s of M averages the units of set s, and U gives every unit the activation of its set. For equal weights of both
models, U is the pseudoinverse of M, as in the paper; for others it stays the same, so that units that are equal in both
models are read as they are.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evosearch.merging.unit_sets import Sets


def zipped(
    parents: Sequence[Tensor], weights: Sequence[float], rows: Sets | None, columns: Sets | None, dtype: torch.dtype
) -> Tensor:
    """Return W* for matrices (out, in), or b* for vectors (out,), in a type.

    Args:
        parents: The tensor of both models.
        weights: Their weights, not all zero. A set without weight has the mean of its units.
        rows: Sets of the outputs; None: each output is merged with that of equal index.
        columns: Sets of the inputs; None: both models read the same ones.
        dtype: Type of the arithmetic and of the result.
    """
    total = torch.zeros(parents[0].shape, dtype=dtype, device=parents[0].device)
    for model, theta in enumerate(parents):
        own = theta.to(dtype)
        if columns is not None:
            own = summed(own, columns.of[model], 1)  # W U
        if rows is None:
            total.add_(own, alpha=weights[model] / sum(weights))
            continue
        shares = shares_of(rows, weights, model).to(own.device, dtype)
        own = own * shares.view(-1, *(1,) * (own.dim() - 1))
        total.add_(summed(own, rows.of[model], 0))  # M W
    return total


def shares_of(sets: Sets, weights: Sequence[float], model: int) -> Tensor:
    """Return the share of each of a model's units in its set (n,), float64: the entries of M that are not zero."""
    counts = [torch.bincount(of, minlength=sets.count).double() for of in sets.of]
    total = weights[0] * counts[0] + weights[1] * counts[1]
    shares = torch.where(total > 0, weights[model] / total, 1 / (counts[0] + counts[1]))
    return shares[sets.of[model]]


def summed(x: Tensor, sets: Tensor, dim: int) -> Tensor:
    """Return the sums of x over the units of each set along a dimension; of no unit, zeros."""
    found = torch.zeros_like(x)
    for units in _ranked(sets):
        units = units.to(x.device)
        found.index_add_(dim, sets.to(x.device)[units], x.index_select(dim, units))
    return found


def _ranked(sets: Tensor) -> Iterator[Tensor]:
    """Yield the first unit of every set, then the second, and so on: sums then have one order on every device."""
    order = sets.argsort(stable=True)
    ordered = sets[order]
    ranks = torch.arange(len(sets)) - torch.searchsorted(ordered, ordered)
    for rank in range(int(ranks.max()) + 1):
        yield order[ranks == rank]
