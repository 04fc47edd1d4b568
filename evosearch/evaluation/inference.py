"""How sure a score is, and how sure a difference of two scores over the same items is. Pure numpy and scipy.

A score is a sum over tasks, Σ kₜ (mₜ - cₜ) with kₜ = 100 wₜ / (1 - cₜ), so tasks are strata: their variances add and
each brings its own degrees of freedom. Where items have groups (questions about one passage), a group is the unit that
was drawn, and an item's deviations are summed within it before they are squared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from evosearch.errors import SuiteError

CONFIDENCE = 0.975  # one-sided; two bounds of it enclose 95%
Groups = Mapping[str, Sequence[str]]  # task → the group of each item; a task may be left out


@dataclass(frozen=True)
class Interval:
    """An estimate; `lower` and `upper` are each a one-sided bound at the confidence asked for."""

    value: float
    stderr: float
    lower: float
    upper: float
    n: int  # items


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of two candidates in score points; positive where the first is better."""

    @property
    def beats(self) -> bool:
        """The first is better, at the confidence of the bound."""
        return self.lower > 0.0


@dataclass(frozen=True)
class _Stratum:
    """One task's part of a weighted sum of means."""

    mean: float
    variance: float  # of the mean
    df: int
    n: int
    largest: float  # the most that one unit moves the mean away from zero


def paired_difference(
    a: Mapping[str, ArrayLike],
    b: Mapping[str, ArrayLike],
    weights: Mapping[str, float],
    chances: Mapping[str, float],
    groups: Groups | None = None,
    confidence: float = CONFIDENCE,
) -> Difference:
    """How much more `a` scores than `b` on the same items.

    Bounds are Student's t with Welch-Satterthwaite degrees of freedom over the tasks. The variance holds one pair of
    items more than were seen: a win and a loss as large as the largest difference met. That vanishes like 1/n², and
    keeps two wins out of two from counting as certain; where few of many right-or-wrong items differ, the bound then
    passes zero where the exact sign test does (6 : 0, 8 : 1), and plain t too early (4 : 0, 7 : 1).

    Args:
        a, b: task → (items,) metric values in [0, 1], the same items in the same order.
        weights: task → weight in the score, summing to one; these tasks are compared.
        chances: task → chance level c in [0, 1).
        groups: task → group of each item, where items are not independent.
        confidence: of each one-sided bound.

    Raises:
        SuiteError: the two do not have the same tasks and numbers of items, or a value is not finite.
    """
    one, other = _checked(a, weights, groups), _checked(b, weights, groups)
    for task in weights:
        if one[task].shape != other[task].shape:
            got = f"{one[task].size} and {other[task].size} items"
            raise SuiteError(f"task '{task}'", f"the two candidates have {got}", "Both scored on the same items")
    strata = {task: _stratum(one[task] - other[task], (groups or {}).get(task)) for task in weights}
    scale = {task: 100.0 * weights[task] / (1.0 - chances[task]) for task in weights}
    value = sum(scale[task] * s.mean for task, s in strata.items())
    parts = [(scale[task] ** 2 * s.variance, s.df) for task, s in strata.items()]
    unseen = max(scale[task] * s.largest for task, s in strata.items())
    parts.append((2.0 * unseen**2, sum(s.df for s in strata.values())))
    stderr, margin = _student(parts, confidence)
    bound = sum(scale.values())  # metrics lie in [0, 1], so their differences in [-1, 1]
    n = sum(s.n for s in strata.values())
    return Difference(value, stderr, max(value - margin, -bound), min(value + margin, bound), n)


def interval(
    columns: Mapping[str, ArrayLike],
    weights: Mapping[str, float],
    chances: Mapping[str, float] | None = None,
    groups: Groups | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """One candidate's score; without `chances` the weighted mean of its raw metrics, in points of 0 to 100.

    Each task's own bounds (`mean_interval`) are combined by the square root of their summed squared distances (MOVER,
    Zou & Donner 2008), which for one task are that task's bounds.

    Raises:
        SuiteError: a task is missing, empty, of another length than its groups, or holds a value that is not finite.
    """
    values = _checked(columns, weights, groups)
    value = variance = below = above = 0.0
    for task, weight in weights.items():
        chance = chances[task] if chances is not None else 0.0
        scale = 100.0 * weight / (1.0 - chance)  # 100 w (m - c) / (1 - c)
        mean = mean_interval(values[task], (groups or {}).get(task), confidence)
        value += scale * (mean.value - chance)
        variance += (scale * mean.stderr) ** 2
        below += (scale * (mean.value - mean.lower)) ** 2
        above += (scale * (mean.upper - mean.value)) ** 2
    n = sum(values[task].size for task in weights)
    return Interval(value, variance**0.5, value - below**0.5, value + above**0.5, n)


def mean_interval(values: ArrayLike, groups: Sequence[str] | None = None, confidence: float = CONFIDENCE) -> Interval:
    """A mean of item metrics in [0, 1]: Wilson's interval for right-or-wrong items, Student's t for others.

    Args:
        values: (items,)
        groups: the group of each item; Wilson's interval then takes the number of independent items that would have
            the variance found.
    """
    array = np.asarray(values, dtype=np.float64)
    part = _stratum(array, groups)
    stderr = part.variance**0.5
    if np.isin(array, (0.0, 1.0)).all():
        p, units = part.mean, part.df + 1.0
        spread = part.variance * part.df / units  # p (1 - p) / n where every item is its own unit
        effective = min(float(part.n), p * (1.0 - p) / spread) if spread > 0.0 else units
        lower, upper = _wilson(p, effective, confidence)
    elif part.df == 0:  # one item, or one group of items, says nothing of the spread
        lower, upper = 0.0, 1.0
    else:
        margin = float(stdtrit(part.df, confidence)) * stderr
        lower, upper = max(part.mean - margin, 0.0), min(part.mean + margin, 1.0)
    return Interval(part.mean, stderr, lower, upper, part.n)


def _checked(
    columns: Mapping[str, ArrayLike], tasks: Mapping[str, float], groups: Groups | None
) -> dict[str, NDArray[np.float64]]:
    out = {}
    for task in tasks:
        where = f"task '{task}'"
        if task not in columns:
            raise SuiteError(where, "has no scores", f"Scores of {', '.join(tasks)}")
        array = np.asarray(columns[task], dtype=np.float64)
        if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
            raise SuiteError(where, f"scores of shape {array.shape}", "At least one item, every value finite")
        names = (groups or {}).get(task)
        if names and len(names) != array.size:
            raise SuiteError(where, f"{array.size} items with {len(names)} groups", "One group an item")
        out[task] = array
    return out


def _stratum(values: NDArray[np.float64], groups: Sequence[str] | None) -> _Stratum:
    """Mean and variance of the mean, with G units (items, or groups of items) of n items.

    Var(mean) = G / (G - 1) · Σ_g (Σ_{i in g} (xᵢ - mean))² / n²; without groups this is s² / n.
    """
    n, mean = values.size, float(values.mean())
    sums, deviations = values, values - mean  # (units,)
    if groups:
        _, unit = np.unique(np.asarray(groups), return_inverse=True)
        sums = np.bincount(unit, values).astype(np.float64)
        deviations = np.bincount(unit, values - mean).astype(np.float64)
    units = deviations.size
    variance = units / max(units - 1, 1) * float(deviations @ deviations) / n**2
    return _Stratum(mean, variance, units - 1, n, float(np.abs(sums).max()) / n)


def _student(parts: Sequence[tuple[float, int]], confidence: float) -> tuple[float, float]:
    """Standard error and margin of a sum of independent estimates, given as (variance, degrees of freedom)."""
    total = sum(variance for variance, _ in parts)
    if total <= 0.0:
        return 0.0, 0.0
    # Welch-Satterthwaite: df = (Σ v)² / Σ v² / df. A task of one unit counts with one degree of freedom, the widest.
    df = total**2 / sum(variance**2 / max(own, 1) for variance, own in parts)
    return total**0.5, float(stdtrit(df, confidence)) * total**0.5


def _wilson(p: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson 1927: the proportions that a score test at this confidence does not reject."""
    z = float(ndtri(confidence))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)
