"""Greedy matching of the units of two models, across models and within each (ZipIt!, Stoica et al. 2023, section 4).

The 2n units of both models are merged, the most similar pair first, until n sets are left. A set that has been merged
may be merged again: its similarity to another is the smaller one of its two parts', times α. With α = 0 units are
matched once, without replacement. A merge is within a model if both sets have units of this model only; each model may
have β n / 2 of them.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evosearch.merging.kernels import one_thread

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

TIE = 1e-5  # added for units of equal index in both models: above the rounding of correlations, below differences
BLOCK = 512  # rows of a correlation matrix that are computed together
MOST_CONSTANTS = 256  # values of units that do not vary, which are compared
MIXED = -1  # owner of a set with units of both models


class Similarities:
    """A symmetric matrix (size, size), of which the triangle above the diagonal is kept: 1 GB for Llama's MLPs of 7B.

    Args:
        size: Number of units.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        rows = np.arange(size, dtype=np.int64)
        self._starts: Ints = size * rows - (rows + 2) * (rows + 1) // 2  # entry (i, j) with i < j is at starts[i] + j
        self._values: Floats = np.empty(size * (size - 1) // 2, dtype=np.float32)

    @classmethod
    def of(cls, matrix: Tensor) -> "Similarities":
        """Return those of a symmetric matrix (size, size)."""
        found = cls(len(matrix))
        for i, row in enumerate(matrix.float().numpy()):
            found._above(i)[:] = row[i + 1 :]
        return found

    @classmethod
    def correlations(cls, first: Tensor, second: Tensor) -> "Similarities":
        """Return the correlations of all units of both models, the first model's first.

        Units that do not vary correlate with those of the same constant value, by 1, and with no others. Units of equal
        index in both models are preferred by `TIE`.

        Args:
            first: Activations of the first model (tokens, n).
            second: Of the second model, on the same tokens (tokens, n).
        """
        with one_thread():
            x = standardized(torch.cat([first.float(), second.float()], dim=1))
            found = cls(x.shape[1])
            for start in range(0, found.size, BLOCK):
                rows = (x[:, start : start + BLOCK].t() @ x[:, start:]).numpy()
                for i, row in enumerate(rows):
                    found._above(start + i)[:] = row[i + 1 :]
        half = found.size // 2
        units = np.arange(half, dtype=np.int64)
        found._values[found._starts[:half] + units + half] += np.float32(TIE)
        return found

    def row(self, unit: int) -> Floats:
        """Return the similarities of one unit (size,); −∞ to itself."""
        found = np.empty(self.size, dtype=np.float32)
        found[:unit] = self._values[self._starts[:unit] + unit]
        found[unit] = -np.inf
        found[unit + 1 :] = self._above(unit)
        return found

    def set_row(self, unit: int, values: Floats) -> None:
        """Replace the similarities of one unit (size,)."""
        self._values[self._starts[:unit] + unit] = values[:unit]
        self._above(unit)[:] = values[unit + 1 :]

    def _above(self, unit: int) -> Floats:
        """Return the view of a unit's similarities to all later units."""
        start = int(self._starts[unit])
        return self._values[start + unit + 1 : start + self.size]


def standardized(x: Tensor) -> Tensor:
    """Return activations (tokens, n), changed in place, with more rows such that xᵀx are the units' correlations."""
    low, high = torch.aminmax(x, dim=0)
    x.sub_(x.mean(dim=0))
    norms = torch.linalg.vector_norm(x, dim=0)
    still = (low == high) | (norms == 0)
    x.div_(torch.where(still, 1.0, norms))
    if not still.any():
        return x
    x[:, still] = 0.0
    values, counts = torch.unique(low[still], return_counts=True)
    kept = values[counts.argsort(descending=True, stable=True)[:MOST_CONSTANTS]]
    return torch.cat([x, (low == kept.unsqueeze(1)).logical_and_(still).float()])


def matched(similarities: Similarities, alpha: float, beta: float) -> Tensor:
    """Return the set of each of 2n units: 0 to n − 1, in the order of the sets' first units.

    Args:
        similarities: Of the 2n units, the first model's first. They are changed.
        alpha: Factor of a merged set's similarities, in [0, 1]; 0: no set is merged again.
        beta: Part of the n merges that may be within a model, half of it in each model, in [0, 1].
    """
    return _Matching(similarities, alpha, beta).sets()


class _Matching:
    """The state of a greedy matching. A set is known by its first unit."""

    def __init__(self, similarities: Similarities, alpha: float, beta: float) -> None:
        self._similar, self._alpha, self._size = similarities, np.float32(alpha), similarities.size
        half = self._size // 2
        self._parents = np.arange(self._size)
        self._owners = np.repeat(np.array([0, 1]), half)
        self._budgets = [int(beta * half / 2 + 1e-9)] * 2
        self._best = np.full(self._size, -np.inf, dtype=np.float32)
        self._partners = np.zeros(self._size, dtype=np.int64)
        for unit in range(self._size):
            self._renew(unit)

    def sets(self) -> Tensor:
        for _ in range(self._size // 2):
            one = int(self._best.argmax())
            assert self._best[one] > -np.inf, "budgets leave a pair"
            self._merge(*sorted((one, int(self._partners[one]))))
        firsts = list(self._roots())
        _, found = np.unique(firsts, return_inverse=True)
        return torch.from_numpy(found.astype(np.int64))

    def _merge(self, kept: int, gone: int) -> None:
        """Merge two sets; the first unit of `kept` is the earlier one."""
        self._parents[gone] = kept
        owner = int(self._owners[kept])
        if owner != self._owners[gone]:
            self._owners[kept] = owner = MIXED
        nothing = np.full(self._size, -np.inf, dtype=np.float32)
        row = nothing
        if self._alpha > 0:
            row = np.minimum(self._similar.row(kept), self._similar.row(gone)) * self._alpha
            row[gone] = -np.inf
        self._similar.set_row(gone, nothing)
        self._similar.set_row(kept, row)
        self._best[gone] = -np.inf
        left = self._best > -np.inf
        stale = left & ((self._partners == kept) | (self._partners == gone))
        stale[kept] = True
        if owner != MIXED:
            self._budgets[owner] -= 1
            if self._budgets[owner] == 0:  # pairs within this model are no longer allowed
                stale |= left & (self._owners == owner) & (self._owners[self._partners] == owner)
        for unit in np.flatnonzero(stale):
            self._renew(int(unit))
        own = self._allowed(kept, row)
        better = left & ~stale & (own > self._best)  # a negative similarity times α is greater
        self._best[better], self._partners[better] = own[better], kept

    def _renew(self, unit: int) -> None:
        """Find the best partner of a set."""
        row = self._allowed(unit, self._similar.row(unit))
        partner = int(row.argmax())
        self._best[unit], self._partners[unit] = row[partner], partner

    def _allowed(self, unit: int, row: Floats) -> Floats:
        """Return a set's similarities, −∞ within a model whose budget is spent."""
        owner = int(self._owners[unit])
        if owner == MIXED or self._budgets[owner] > 0:
            return row
        return np.where(self._owners == owner, np.float32(-np.inf), row)

    def _roots(self) -> Iterator[int]:
        """Yield the first unit of every unit's set."""
        for unit in range(self._size):
            root = unit
            while self._parents[root] != root:
                root = int(self._parents[root])
            yield root
