"""The exact paired test: is the first candidate better than the second on items that both answered? Pure numpy.

Were the two equal, each independent unit (item, or group of items) would as likely have shown its difference the other
way round (Fisher 1935, §21). So the score's difference T = Σ ± xᵤ has a known distribution, over all 2^U signs, that
asks for no normal approximation and no spread. For one task of right-or-wrong items it is the exact McNemar test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from evosearch.evaluation.statistics.units import Groups, Units, Vector, paired_units, scales

SUPPORT = 2**17  # points kept of a distribution; two are laid against each other, so 34 unlike units are enumerated
DRAWS = 9_999  # of signs, where there are too many sums to list
CHUNK = 2**22  # signs held at once
ROUNDING = 1e-9  # sums are taken for equal within this part of the largest: in favour of no difference


@dataclass(frozen=True)
class PairedTest:
    """How often chance alone does as well as the first candidate did."""

    p_value: float  # one-sided: P(T at least as seen) where neither is better
    exact: bool  # all signs were counted; otherwise some were drawn, and p is (r + 1) / (draws + 1)
    units: int  # that differ


def paired_test(
    a: Mapping[str, ArrayLike],
    b: Mapping[str, ArrayLike],
    weights: Mapping[str, float],
    chances: Mapping[str, float],
    groups: Groups | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> PairedTest:
    """The one-sided sign-flip test of "`a` scores more than `b`".

    Args:
        a, b, weights, chances, groups: as for `inference.paired_difference`.
        draws: of signs, where the exact distribution is too large to list.
        seed: of those draws, so that the same scores give the same p.

    Raises:
        SuiteError: the two do not have the same tasks and numbers of items, or a value is not finite.
    """
    return sign_flip(paired_units(a, b, weights, groups), scales(weights, chances), draws, seed)


def sign_flip(found: Mapping[str, Units], scale: Mapping[str, float], draws: int = DRAWS, seed: int = 0) -> PairedTest:
    """`paired_test` of units already cut, as for `inference.difference`."""
    sizes = {task: _sizes(entry, scale[task]) for task, entry in found.items()}  # task → (|xᵤ|, how many have it)
    total = sum(scale[task] * entry.mean for task, entry in found.items())
    reach = sum(float(values @ counts) for values, counts in sizes.values())  # the largest that T can be
    differ = sum(int(counts.sum()) for _, counts in sizes.values())
    at_least = total - ROUNDING * reach
    halves = _halves([_fold(values, counts, reach) for values, counts in sizes.values()], reach)
    if halves is not None:
        return PairedTest(_tail(*halves, at_least), True, differ)
    rng = np.random.default_rng(seed)
    hits = sum(int((drawn >= at_least).sum()) for drawn in _draw(list(sizes.values()), draws, rng))
    return PairedTest((hits + 1) / (draws + 1), False, differ)  # Phipson & Smyth 2010: never zero


@dataclass(frozen=True)
class _Law:
    """A distribution on finitely many points, ascending."""

    points: Vector
    chances: Vector


POINT = _Law(np.zeros(1), np.ones(1))


def _sizes(units: Units, scale: float) -> tuple[Vector, Vector]:
    """The distinct sizes, in points of score, of the differences that are not zero, and how many units have each."""
    # rounded, 0.3 - 0.2 and 0.2 - 0.1 are one size, and 0.3 - 0.2 - 0.1 is zero
    sums: Vector = np.abs(units.sums).round(12)
    values, counts = np.unique(sums[sums > 0.0], return_counts=True)
    return scale / units.n * values, counts.astype(np.float64)


def _fold(values: Vector, counts: Vector, reach: float) -> list[_Law]:
    """One task's T as a sum of few independent laws: one, where its sums fall on a lattice. More than two are not all
    of them: it has too many sums to list.
    """
    laws: list[_Law] = []
    for value, count in zip(values, counts, strict=True):
        flips = np.arange(count + 1.0)
        log_binomial = gammaln(count + 1) - gammaln(flips + 1) - gammaln(count - flips + 1)
        # c units of one size: (2 K - c) x, K of Binomial(c, 1/2)
        law = _Law((2.0 * flips - count) * value, np.exp(log_binomial - count * np.log(2.0)))
        if laws and laws[-1].points.size * law.points.size <= SUPPORT:
            laws[-1] = _add(laws[-1], law, reach)
        else:
            laws.append(law)
        if len(laws) > 2:
            break
    return laws


def _add(one: _Law, other: _Law, reach: float) -> _Law:
    """The law of a sum of two independent terms; equal sums are one point."""
    sums = np.add.outer(one.points, other.points).ravel()
    chances = np.multiply.outer(one.chances, other.chances).ravel()
    keys, first, where = np.unique(np.rint(sums / (ROUNDING / 100 * reach)), return_index=True, return_inverse=True)
    return _Law(sums[first], np.bincount(where, chances, keys.size).astype(np.float64))


def _halves(laws: Sequence[list[_Law]], reach: float) -> tuple[_Law, _Law] | None:
    """All terms in two laws; None where they have too many points."""
    if any(len(own) > 2 for own in laws):
        return None
    one, other = POINT, POINT
    for law in sorted(chain.from_iterable(laws), key=lambda entry: entry.points.size):
        if one.points.size > other.points.size:
            one, other = other, one
        if one.points.size * law.points.size > SUPPORT:
            return None
        one = _add(one, law, reach)
    return one, other


def _tail(one: _Law, other: _Law, at_least: float) -> float:
    """P(X + Y at least so much)."""
    beyond = np.append(np.cumsum(other.chances[::-1])[::-1], 0.0)  # P(Y at least its k-th point)
    return min(1.0, float(one.chances @ beyond[np.searchsorted(other.points, at_least - one.points)]))


def _draw(sizes: Sequence[tuple[Vector, Vector]], draws: int, rng: np.random.Generator) -> list[Vector]:
    """T under random signs, in parts."""
    values = np.concatenate([entry[0] for entry in sizes])  # (kinds,)
    counts = np.concatenate([entry[1] for entry in sizes]).astype(np.int64)
    rows = max(1, CHUNK // max(1, values.size))
    parts = []
    for start in range(0, draws, rows):
        shape = (min(rows, draws - start), values.size)
        flips = rng.integers(0, 2, shape, dtype=np.int8) if counts.max() == 1 else rng.binomial(counts, 0.5, shape)
        parts.append((2.0 * flips - counts) @ values)
    return parts
