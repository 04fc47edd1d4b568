"""Confidence intervals of scores and of paired differences of scores. Pure numpy and scipy.

A score is a sum over tasks, Σ kₜ (mₜ - cₜ) with kₜ = 100 wₜ / (1 - cₜ), so tasks are strata: their variances add, and
each contributes its own degrees of freedom. If items have groups (questions about one passage), the group is the
sampling unit, and deviations are summed within a group before they are squared.
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
    """An estimate; `lower` and `upper` are one-sided bounds, each at the requested confidence."""

    value: float
    stderr: float
    lower: float
    upper: float
    n: int  # items


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of two candidates in score points; positive if the first is better."""

    @property
    def beats(self) -> bool:
        """Whether the first is better, at the bound's confidence."""
        return self.lower > 0.0


def paired_difference(
    a: Mapping[str, ArrayLike],
    b: Mapping[str, ArrayLike],
    weights: Mapping[str, float],
    chances: Mapping[str, float],
    groups: Groups | None = None,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Estimate how much higher `a` scores than `b` on the same items.

    Bounds are Student's t with Welch-Satterthwaite degrees of freedom over the tasks. The variance includes one more
    pair of units than observed: a win and a loss of the observed root mean square (for right-or-wrong items, this is
    Bonett & Price 2012). This term vanishes like 1/n², and without it two wins out of two would have zero variance. If
    few of many right-or-wrong items differ, the bound crosses zero where the exact sign test does (6 : 0, 8 : 1), while
    plain t crosses too early (4 : 0, 7 : 1). `benchmarks/gate.py` measures its coverage.

    Args:
        a: Task → (items,) metric values in [0, 1].
        b: As `a`, for the same items in the same order.
        weights: Task → weight in the score, summing to one; these tasks are compared.
        chances: Task → chance level c in [0, 1).
        groups: Task → group of each item, for tasks whose items are not independent.
        confidence: Confidence of each one-sided bound.

    Raises:
        SuiteError: `a` and `b` differ in tasks or numbers of items, or a value is not finite.
    """
    return difference(paired_units(a, b, weights, groups), scales(weights, chances), confidence)


def difference(found: Mapping[str, Units], scale: Mapping[str, float], confidence: float = CONFIDENCE) -> Difference:
    """Run `paired_difference` on units.

    Args:
        found: Task → units of the paired differences.
        scale: Task → score points per unit of the mean, see `units.scales`.
        confidence: Confidence of each one-sided bound.
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
    """Estimate one candidate's score; without `chances`, the weighted mean of its raw metrics, from 0 to 100.

    The tasks' bounds (`mean_interval`) are combined by the root of their summed squared distances (MOVER, Zou & Donner
    2008); for a single task they are that task's bounds.

    Args:
        columns: Task → (items,) metric values in [0, 1].
        weights: Task → weight in the score, summing to one.
        chances: Task → chance level c in [0, 1).
        groups: Task → group of each item, for tasks whose items are not independent.
        confidence: Confidence of each one-sided bound.

    Raises:
        SuiteError: A task is missing or empty, its groups have another length, or a value is not finite.
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
    """Estimate how much larger one estimate is than another from different items.

    Bounds by MOVER (Zou & Donner 2008): the distance of each bound is the root of the summed squared distances of the
    two estimates' own bounds on that side.
    """
    value = one.value - other.value
    below = ((one.value - one.lower) ** 2 + (other.upper - other.value) ** 2) ** 0.5
    above = ((one.upper - one.value) ** 2 + (other.value - other.lower) ** 2) ** 0.5
    return Interval(value, (one.stderr**2 + other.stderr**2) ** 0.5, value - below, value + above, one.n + other.n)


def mean_interval(values: ArrayLike, groups: Sequence[str] | None = None, confidence: float = CONFIDENCE) -> Interval:
    """Estimate the mean of item metrics in [0, 1]: Wilson's interval for right-or-wrong items, otherwise Student's t.

    Args:
        values: (items,) metric values.
        groups: Group of each item; Wilson's interval then uses the effective number of independent items, the number
            that gives the observed variance.
        confidence: Confidence of each one-sided bound.
    """
    array = np.asarray(values, dtype=np.float64)
    part = units(array, groups)
    mean, variance, count = part.mean, part.variance, part.sums.size
    stderr = variance**0.5
    if np.isin(array, (0.0, 1.0)).all():
        spread = variance * (count - 1) / count  # p (1 - p) / n if every item is its own unit
        effective = min(float(part.n), mean * (1.0 - mean) / spread) if spread > 0.0 else float(count)
        lower, upper = _wilson(mean, effective, confidence)
    elif count == 1:  # a single unit gives no estimate of the variance
        lower, upper = 0.0, 1.0
    else:
        margin = float(stdtrit(count - 1, confidence)) * stderr
        lower, upper = max(mean - margin, 0.0), min(mean + margin, 1.0)
    return Interval(mean, stderr, lower, upper, part.n)


def proportion_difference(gained: int, lost: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return one-sided bounds of a paired difference of two proportions over independent items.

    Tango 1998 (Statist. Med. 17:891-908): the differences δ that the score test does not reject. With b gained, c lost,

        z(δ) = (b - c - nδ) / √(n (2q + δ(1 - δ)))      q maximum likelihood P(lost) given P(gained) - P(lost) = δ

    The variance is computed under the hypothesis, not from the data: if none of n items changed, the lower bound is
    -z² / (n + z²), since losses that rare are compatible with observing none.

    Args:
        gained: Items that only the first candidate got right.
        lost: Items that only the second candidate got right.
        n: All items.
        confidence: Confidence of each one-sided bound.

    Returns:
        Lower and upper bound.
    """
    return _lowest(gained, lost, n, confidence), -_lowest(lost, gained, n, confidence)


def degrees_of_freedom(parts: Sequence[tuple[float, int]]) -> float:
    """Return the Welch-Satterthwaite degrees of freedom of a sum of independent estimates.

    df = (Σ v)² / Σ (v² / df). A task with a single unit has one degree of freedom, which gives the widest interval.

    Args:
        parts: (variance, degrees of freedom) of each estimate.
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
    """The δ at which Tango's z(δ), decreasing in δ, reaches the quantile, by bisection."""
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
    """Wilson 1927: bounds of the proportions that a score test at this confidence does not reject."""
    z = float(ndtri(confidence))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)
