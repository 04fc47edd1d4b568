"""How sure a score is, and how sure a difference of two scores over the same items is. Pure numpy and scipy.

A score is a sum over tasks, Σ kₜ (mₜ - cₜ) with kₜ = 100 wₜ / (1 - cₜ), so tasks are strata: their variances add and
each brings its own degrees of freedom. Where items have groups (questions about one passage), a group is the unit that
was drawn, and an item's deviations are summed within it before they are squared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

from evosearch.evaluation.statistics.units import Groups, Units, checked, paired_units, scales, units

CONFIDENCE = 0.975  # one-sided; two bounds of it enclose 95%


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
    units more than were seen: a win and a loss as large as those met, in root mean square (for right-or-wrong items
    that is Bonett & Price 2012). It vanishes like 1/n², and keeps two wins out of two from counting as certain; where
    few of many right-or-wrong items differ, the bound then passes zero where the exact sign test does (6 : 0, 8 : 1),
    and plain t too early (4 : 0, 7 : 1). `scripts/bench/gate` measures what it keeps to.

    Args:
        a, b: task → (items,) metric values in [0, 1], the same items in the same order.
        weights: task → weight in the score, summing to one; these tasks are compared.
        chances: task → chance level c in [0, 1).
        groups: task → group of each item, where items are not independent.
        confidence: of each one-sided bound.

    Raises:
        SuiteError: the two do not have the same tasks and numbers of items, or a value is not finite.
    """
    return difference(paired_units(a, b, weights, groups), scales(weights, chances), confidence)


def difference(found: Mapping[str, Units], scale: Mapping[str, float], confidence: float = CONFIDENCE) -> Difference:
    """`paired_difference` of units already cut.

    Args:
        found: task → units of the paired differences.
        scale: task → points of score that a mean of one is worth.
    """
    value = sum(scale[task] * entry.mean for task, entry in found.items())
    parts = [(scale[task] ** 2 * entry.variance, entry.sums.size - 1) for task, entry in found.items()]
    unseen = max(scale[task] * entry.typical for task, entry in found.items())
    parts.append((2.0 * unseen**2, sum(df for _, df in parts)))
    stderr, margin = _student(parts, confidence)
    bound = sum(scale.values())  # metrics lie in [0, 1], so their differences in [-1, 1]
    n = sum(entry.n for entry in found.values())
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
    values = checked(columns, weights, groups)
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


def independent_difference(one: Interval, other: Interval) -> Interval:
    """How much larger one estimate is than another from other items, with the bounds that the two have together.

    MOVER (Zou & Donner 2008): each bound lies as far off as both estimates' own bounds on that side do, in squares.
    """
    value = one.value - other.value
    below = ((one.value - one.lower) ** 2 + (other.upper - other.value) ** 2) ** 0.5
    above = ((one.upper - one.value) ** 2 + (other.value - other.lower) ** 2) ** 0.5
    return Interval(value, (one.stderr**2 + other.stderr**2) ** 0.5, value - below, value + above, one.n + other.n)


def mean_interval(values: ArrayLike, groups: Sequence[str] | None = None, confidence: float = CONFIDENCE) -> Interval:
    """A mean of item metrics in [0, 1]: Wilson's interval for right-or-wrong items, Student's t for others.

    Args:
        values: (items,)
        groups: the group of each item; Wilson's interval then takes the number of independent items that would have
            the variance found.
    """
    array = np.asarray(values, dtype=np.float64)
    part = units(array, groups)
    mean, variance, count = part.mean, part.variance, part.sums.size
    stderr = variance**0.5
    if np.isin(array, (0.0, 1.0)).all():
        spread = variance * (count - 1) / count  # p (1 - p) / n where every item is its own unit
        effective = min(float(part.n), mean * (1.0 - mean) / spread) if spread > 0.0 else float(count)
        lower, upper = _wilson(mean, effective, confidence)
    elif count == 1:  # one item, or one group of items, says nothing of the spread
        lower, upper = 0.0, 1.0
    else:
        margin = float(stdtrit(count - 1, confidence)) * stderr
        lower, upper = max(mean - margin, 0.0), min(mean + margin, 1.0)
    return Interval(mean, stderr, lower, upper, part.n)


def proportion_difference(gained: int, lost: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """One-sided bounds of a difference of two right-or-wrong proportions over the same items, which stand alone.

    Tango 1998 (Statist. Med. 17:891-908): the differences δ that the score test does not reject. With b gained, c lost,

        z(δ) = (b - c - nδ) / √(n (2q + δ(1 - δ)))      q the likelihood's best P(lost) where P(gained) - P(lost) is δ

    whose variance is that of the hypothesis, not of the data: where none of n items changed, the lower bound is
    -z² / (n + z²), for a loss as rare as that is not excluded by not meeting it.
    """
    return _lowest(gained, lost, n, confidence), -_lowest(lost, gained, n, confidence)


def degrees_of_freedom(parts: Sequence[tuple[float, int]]) -> float:
    """Welch-Satterthwaite's, of a sum of independent estimates given as (variance, degrees of freedom).

    df = (Σ v)² / Σ (v² / df). A task of one unit counts with one degree of freedom, the widest.
    """
    total = sum(variance for variance, _ in parts)
    if total <= 0.0:
        return float(max(1, *(own for _, own in parts)))
    return total**2 / sum(variance**2 / max(own, 1) for variance, own in parts)


def _student(parts: Sequence[tuple[float, int]], confidence: float) -> tuple[float, float]:
    """Standard error and margin of a sum of independent estimates, given as (variance, degrees of freedom)."""
    stderr = sum(variance for variance, _ in parts) ** 0.5
    return stderr, float(stdtrit(degrees_of_freedom(parts), confidence)) * stderr


def _lowest(b: int, c: int, n: int, confidence: float) -> float:
    """Where Tango's z(δ), which falls as δ grows, comes down to the quantile: by bisection."""
    quantile = float(ndtri(confidence))
    low, high = -1.0, (b - c) / n
    for _ in range(60):
        delta = (low + high) / 2
        linear, constant = (2 * n - b + c) * delta - b - c, -c * delta * (1 - delta)  # 2n q² + linear q + constant = 0
        q = ((linear**2 - 8 * n * constant) ** 0.5 - linear) / (4 * n)
        variance = n * max(2 * q + delta * (1 - delta), 0.0)
        low, high = (delta, high) if b - c - n * delta > quantile * variance**0.5 else (low, delta)
    return high


def _wilson(p: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson 1927: the proportions that a score test at this confidence does not reject."""
    z = float(ndtri(confidence))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)
