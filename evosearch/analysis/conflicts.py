"""Sign conflicts and sparsity of task vectors.

An entry is shared if at least two changes are not zero there. It is in conflict if two of them have opposite signs
(Yadav et al. 2023, section 3).

    conflict          = entries in conflict / shared entries
    weighted conflict = Σ_conflict Σᵢ |τᵢ| / Σ_shared Σᵢ |τᵢ|
    zeros             = entries of τ that are 0 / all entries
    spread            = (Σ |τ|)² / (n Σ τ²)     1 if all entries have one magnitude, 2/π for a normal distribution, and
                                                the share of changed entries if these have one magnitude
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK = 1 << 22  # elements that are compared at once


@dataclass
class Counts:
    """Sums over tensors; `add` counts one more.

    Attributes:
        models: Number of changes.
        elements: Number of entries.
        shared: Entries that at least two changes have.
        conflicting: Those in conflict.
        shared_weight: Σ |τ| over shared entries.
        conflicting_weight: Σ |τ| over entries in conflict.
        zero: Entries that are zero, for every change.
        absolute: Σ |τ|, for every change.
        squared: Σ τ², for every change.
    """

    models: int
    elements: int = 0
    shared: int = 0
    conflicting: int = 0
    shared_weight: float = 0.0
    conflicting_weight: float = 0.0
    zero: list[int] = field(default_factory=list)
    absolute: list[float] = field(default_factory=list)
    squared: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.zero = self.zero or [0] * self.models
        self.absolute = self.absolute or [0.0] * self.models
        self.squared = self.squared or [0.0] * self.models

    def add(self, changes: Sequence[Tensor]) -> None:
        """Count one tensor: its change in every model, all of one shape."""
        flat = [each.reshape(-1) for each in changes]
        for start in range(0, len(flat[0]), CHUNK):
            self._add(torch.stack([each[start : start + CHUNK] for each in flat]))

    def plus(self, other: "Counts") -> "Counts":
        """Return the counts of both together."""
        return Counts(
            self.models,
            self.elements + other.elements,
            self.shared + other.shared,
            self.conflicting + other.conflicting,
            self.shared_weight + other.shared_weight,
            self.conflicting_weight + other.conflicting_weight,
            [a + b for a, b in zip(self.zero, other.zero, strict=True)],
            [a + b for a, b in zip(self.absolute, other.absolute, strict=True)],
            [a + b for a, b in zip(self.squared, other.squared, strict=True)],
        )

    @property
    def conflict(self) -> float | None:
        """Share of shared entries whose signs disagree; None without shared entries."""
        return self.conflicting / self.shared if self.shared else None

    @property
    def weighted_conflict(self) -> float | None:
        """The same, each entry weighted by Σ |τ|."""
        return self.conflicting_weight / self.shared_weight if self.shared_weight else None

    @property
    def zeros(self) -> list[float]:
        """Share of entries that are zero, for every change."""
        return [zero / self.elements if self.elements else 0.0 for zero in self.zero]

    @property
    def spread(self) -> list[float | None]:
        """(Σ |τ|)² / (n Σ τ²) for every change; None for a change that is zero."""
        pairs = zip(self.absolute, self.squared, strict=True)
        return [absolute**2 / (self.elements * squared) if squared else None for absolute, squared in pairs]

    def _add(self, rows: Tensor) -> None:
        """Count a chunk of shape (models, entries)."""
        size = rows.abs().double()
        positive, negative = (rows > 0).sum(dim=0), (rows < 0).sum(dim=0)
        shared, conflict = positive + negative >= 2, (positive > 0) & (negative > 0)
        weight = size.sum(dim=0)
        self.elements += rows.shape[1]
        self.shared += int(shared.sum())
        self.conflicting += int(conflict.sum())
        self.shared_weight += float(weight[shared].sum())
        self.conflicting_weight += float(weight[conflict].sum())
        for index, own in enumerate(size):
            self.zero[index] += int((own == 0).sum())
            self.absolute[index] += float(own.sum())
            self.squared[index] += float(own.square().sum())
