"""Independent sampling units, on which all tests and intervals are based. Pure numpy.

If items have groups (questions about one passage, problems of one subject), a unit is a group, otherwise an item. A
task's mean is the ratio Σ sums / Σ sizes over its units, because groups differ in size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evosearch.errors import SuiteError

Groups = Mapping[str, Sequence[str]]  # task → the group of each item; tasks with independent items may be omitted
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """One task's values, summed within each independent unit."""

    sums: Vector  # (units,) sum of the unit's values
    sizes: Vector  # (units,) number of the unit's items
    n: int  # number of items

    @cached_property
    def mean(self) -> float:
        """Mean over the items."""
        return float(self.sums.sum()) / self.n

    @cached_property
    def typical(self) -> float:
        """Root mean square contribution of a nonzero unit to the mean."""
        moved = self.sums[self.sums != 0.0]
        return float(np.sqrt(np.mean(moved**2))) / self.n if moved.size else 0.0

    @cached_property
    def variance(self) -> float:
        """Variance of the mean by the delete-one-unit jackknife; s² / n if every item is a unit, 0 for a single unit.

        (U - 1) / U · Σ_u (mean without u - mean)². It stays valid for groups of different sizes, where the usual
        sandwich estimator is too small (MacKinnon, Nielsen & Webb 2023, CV3): with one group of 200 items and 50 groups
        of 10, the sandwich's one-sided 2.5% bound misses 5.1%.
        """
        count = self.sums.size
        if count == 1:
            return 0.0
        moves = (self.sums - self.mean * self.sizes) / (self.n - self.sizes)
        return (count - 1) / count * float(moves @ moves)


def units(values: Vector, groups: Sequence[str] | None) -> Units:
    """Sum values within the units of one task.

    Args:
        values: (items,) values.
        groups: Group of each item; None or empty if items are independent.
    """
    if not groups:
        return Units(values, np.ones(values.size), values.size)
    unit = _codes(tuple(groups))
    sums, sizes = np.bincount(unit, values), np.bincount(unit)
    return Units(sums.astype(np.float64), sizes.astype(np.float64), values.size)


def paired_units(
    a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike], tasks: Mapping[str, float], groups: Groups | None
) -> dict[str, Units]:
    """Return task → units of a - b.

    Raises:
        SuiteError: `a` and `b` differ in tasks or numbers of items, or a value is not finite.
    """
    one, other = checked(a, tasks, groups), checked(b, tasks, groups)
    for task in tasks:
        if one[task].shape != other[task].shape:
            got = f"{one[task].size} and {other[task].size} items"
            raise SuiteError(f"task '{task}'", f"the two candidates have {got}", "Both scored on the same items")
    return {task: units(one[task] - other[task], (groups or {}).get(task)) for task in tasks}


def scales(weights: Mapping[str, float], chances: Mapping[str, float]) -> dict[str, float]:
    """Return task → k = 100 w / (1 - c), the score points per unit of the task's mean."""
    return {task: 100.0 * weight / (1.0 - chances[task]) for task, weight in weights.items()}


def checked(columns: Mapping[str, ArrayLike], tasks: Mapping[str, float], groups: Groups | None) -> dict[str, Vector]:
    """Return task → (items,) validated values.

    Raises:
        SuiteError: A task is missing or empty, its groups have another length, or a value is not finite.
    """
    out = {}
    for task in tasks:
        where = f"task '{task}'"
        if task not in columns:
            raise SuiteError(where, "has no scores", f"Tasks: {', '.join(tasks)}")
        array = np.asarray(columns[task], dtype=np.float64)
        if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
            raise SuiteError(where, f"scores of shape {array.shape}", "At least one item, every value finite")
        names = (groups or {}).get(task)
        if names and len(names) != array.size:
            raise SuiteError(where, f"{array.size} items with {len(names)} groups", "One group per item")
        out[task] = array
    return out


@lru_cache(maxsize=32)  # a suite's groups are the same for every contender and interval
def _codes(groups: tuple[str, ...]) -> NDArray[np.intp]:
    """(items,) index of each item's group."""
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    codes.setflags(write=False)
    return codes
