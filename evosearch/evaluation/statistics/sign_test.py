"""Paired sign-flip test that the first candidate is better than the second on the same items. Pure numpy.

Under the null hypothesis, the difference of each independent unit (item, or group of items) is equally likely to have
the opposite sign (Fisher 1935, §21). The score's difference T = Σ ± xᵤ then has a known distribution over all 2^U
signs, without a normal approximation or a variance estimate. For one task of right-or-wrong items this is the exact
McNemar test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from evosearch.evaluation.statistics.units import Groups, Units, Vector, paired_units, scales

SUPPORT = 2**17  # largest number of points of a distribution; two are combined, so 34 distinct units are enumerated
DRAWS = 9_999  # random sign vectors, if there are too many sums to enumerate
CHUNK = 2**22  # signs in memory at once
ROUNDING = 1e-9  # relative tolerance for equal sums, which count as "at least as large as observed"


@dataclass(frozen=True)
class SignTest:
    """Result of a one-sided sign-flip test."""

    p_value: float  # P(T at least as large as observed) under the null hypothesis
    exact: bool  # whether all signs were enumerated; otherwise p is (r + 1) / (draws + 1)
    units: int  # number of units that differ


def paired_sign_test(
    a: Mapping[str, ArrayLike],
    b: Mapping[str, ArrayLike],
    weights: Mapping[str, float],
    chances: Mapping[str, float],
    groups: Groups | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> SignTest:
    """Test whether `a` scores higher than `b`, one-sided.

    Args:
        a: Task → (items,) metric values in [0, 1].
        b: As `a`, for the same items in the same order.
        weights: Task → weight in the score, summing to one.
        chances: Task → chance level c in [0, 1).
        groups: Task → group of each item, for tasks whose items are not independent.
        draws: Number of random sign vectors if the exact distribution is too large to enumerate.
        seed: Random seed of those draws; the same scores and seed give the same p.

    Raises:
        SuiteError: `a` and `b` differ in tasks or numbers of items, or a value is not finite.
    """
    return sign_test(paired_units(a, b, weights, groups), scales(weights, chances), draws, seed)


def sign_test(found: Mapping[str, Units], scale: Mapping[str, float], draws: int = DRAWS, seed: int = 0) -> SignTest:
    """Run `paired_sign_test` on units of paired differences, with arguments as in `intervals.difference`."""
    sizes = {task: _sizes(entry, scale[task]) for task, entry in found.items()}  # task → (distinct |xᵤ|, their counts)
    total = sum(scale[task] * entry.mean for task, entry in found.items())
    reach = sum(float(values @ counts) for values, counts in sizes.values())  # maximum of T
    differ = sum(int(counts.sum()) for _, counts in sizes.values())
    at_least = total - ROUNDING * reach
    halves = _halves([_fold(values, counts, reach) for values, counts in sizes.values()], reach)
    if halves is not None:
        return SignTest(_tail(*halves, at_least), True, differ)
    rng = np.random.default_rng(seed)
    hits = sum(int((drawn >= at_least).sum()) for drawn in _draw(list(sizes.values()), draws, rng))
    return SignTest((hits + 1) / (draws + 1), False, differ)  # Phipson & Smyth 2010: never zero


@dataclass(frozen=True)
class _Distribution:
    """A discrete distribution."""

    points: Vector  # ascending
    probabilities: Vector


ZERO = _Distribution(np.zeros(1), np.ones(1))


def _sizes(units: Units, scale: float) -> tuple[Vector, Vector]:
    """Distinct absolute differences in score points, without zero, and the number of units with each."""
    # Rounding makes 0.3 - 0.2 equal to 0.2 - 0.1, and 0.3 - 0.2 - 0.1 equal to zero.
    sums: Vector = np.abs(units.sums).round(12)
    values, counts = np.unique(sums[sums > 0.0], return_counts=True)
    return scale / units.n * values, counts.astype(np.float64)


def _fold(values: Vector, counts: Vector, reach: float) -> list[_Distribution]:
    """One task's T as a sum of independent distributions, a single one if its sums lie on a lattice.

    Stops after the third, since the task then has too many sums to enumerate.
    """
    terms: list[_Distribution] = []
    for value, count in zip(values, counts, strict=True):
        flips = np.arange(count + 1.0)
        log_binomial = gammaln(count + 1) - gammaln(flips + 1) - gammaln(count - flips + 1)
        # c units of one size: (2 K - c) x, K of Binomial(c, 1/2)
        term = _Distribution((2.0 * flips - count) * value, np.exp(log_binomial - count * np.log(2.0)))
        if terms and terms[-1].points.size * term.points.size <= SUPPORT:
            terms[-1] = _add(terms[-1], term, reach)
        else:
            terms.append(term)
        if len(terms) > 2:
            break
    return terms


def _add(one: _Distribution, other: _Distribution, reach: float) -> _Distribution:
    """Distribution of the sum of two independent terms; equal sums are merged."""
    sums = np.add.outer(one.points, other.points).ravel()
    probabilities = np.multiply.outer(one.probabilities, other.probabilities).ravel()
    keys, first, where = np.unique(np.rint(sums / (ROUNDING / 100 * reach)), return_index=True, return_inverse=True)
    return _Distribution(sums[first], np.bincount(where, probabilities, keys.size).astype(np.float64))


def _halves(terms: Sequence[list[_Distribution]], reach: float) -> tuple[_Distribution, _Distribution] | None:
    """Combine all terms into two distributions; None if they have too many points."""
    if any(len(own) > 2 for own in terms):
        return None
    one, other = ZERO, ZERO
    for term in sorted(chain.from_iterable(terms), key=lambda entry: entry.points.size):
        if one.points.size > other.points.size:
            one, other = other, one
        if one.points.size * term.points.size > SUPPORT:
            return None
        one = _add(one, term, reach)
    return one, other


def _tail(one: _Distribution, other: _Distribution, at_least: float) -> float:
    """P(X + Y ≥ at_least)."""
    beyond = np.append(np.cumsum(other.probabilities[::-1])[::-1], 0.0)  # P(Y ≥ its k-th point)
    return min(1.0, float(one.probabilities @ beyond[np.searchsorted(other.points, at_least - one.points)]))


def _draw(sizes: Sequence[tuple[Vector, Vector]], draws: int, rng: np.random.Generator) -> list[Vector]:
    """Samples of T under random signs, in chunks."""
    values = np.concatenate([entry[0] for entry in sizes])  # (kinds,)
    counts = np.concatenate([entry[1] for entry in sizes]).astype(np.int64)
    rows = max(1, CHUNK // max(1, values.size))
    parts = []
    for start in range(0, draws, rows):
        shape = (min(rows, draws - start), values.size)
        flips = rng.integers(0, 2, shape, dtype=np.int8) if counts.max() == 1 else rng.binomial(counts, 0.5, shape)
        parts.append((2.0 * flips - counts) @ values)
    return parts
