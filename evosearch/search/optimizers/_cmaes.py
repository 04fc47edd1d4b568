"""What the optimizers on the library `cmaes` share: its state is read and mended here.

The library has neither least nor greatest step sizes, nor a way to be told of points that are not its own, nor does it
check its numbers. It keeps its state in attributes of fixed names; the pinned version has those that are used here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evosearch.search.optimizers._generations import Point

Strategy = Any  # cmaes.CMA or cmaes.CatCMAwM
STATE = ("_mean", "_sigma", "_C", "_q", "_Delta")  # what every later draw depends on, where it is there


def standard_deviations(strategy: Strategy) -> Point:
    """σ √C_ii of each coordinate."""
    return np.asarray(strategy._sigma * np.sqrt(np.diag(strategy._C)))


def draw(strategy: Strategy, spread: Point | float = 1.0) -> Point:
    """M + σ A B D z, z ~ N(0, I). The library's own `ask` multiplies B by D anew for every draw, in time N³.

    Args:
        spread: A, what each coordinate's step is multiplied by.
    """
    axes, lengths = strategy._eigen_decomposition()
    step = axes @ (lengths * strategy._rng.standard_normal(len(lengths)))
    return np.asarray(strategy._mean + strategy._sigma * spread * step)


def scale(strategy: Strategy, factors: Point) -> None:
    """Multiply each coordinate's standard deviation, whose correlations with others stay: C ← S C S."""
    if np.any(factors != 1.0):
        strategy._C = strategy._C * np.outer(factors, factors)
        strategy._B = strategy._D = None  # to be decomposed anew


def limit_steps(strategy: Strategy, least: Point, greatest: Point) -> None:
    """Keep standard deviations within bounds, coordinate by coordinate."""
    steps = standard_deviations(strategy)
    scale(strategy, np.where(steps > 0, np.clip(steps, least, greatest) / np.where(steps > 0, steps, 1.0), 1.0))


def brought_near(strategy: Strategy, point: Point, spread: Point | float = 1.0) -> Point:
    """A point that another distribution drew, no further from the mean than a draw of the present one would be.

    Its Mahalanobis length is cut at √N + 2N / (N + 2), which bounds what it does to step sizes and covariances
    (Hansen 2011, arXiv:1110.4181; the cut is pycma's).

    Args:
        spread: as in `draw`.
    """
    axes, lengths = strategy._eigen_decomposition()
    step = point - strategy._mean
    length = float(np.linalg.norm((axes.T @ (step / spread)) / (lengths * strategy._sigma)))
    longest = len(point) ** 0.5 + 2.0 * len(point) / (len(point) + 2.0)
    return np.asarray(strategy._mean + step * min(1.0, longest / length) if length > 0 else point)


def tell(strategy: Strategy, solutions: Sequence[Any], losses: Sequence[float]) -> bool:
    """Update the distribution.

    Told are ranks: the library's other uses of values are a criterion to stop on flat fitness, and penalties for bounds
    that we do not give it.

    Returns:
        False where this would leave numbers that are not finite, as when a covariance matrix is no longer positive:
        then nothing has changed.
    """
    before = {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value in vars(strategy).items()
        if name != "_rng"
    }
    ranks = np.argsort(np.argsort(losses, kind="stable"), kind="stable").astype(float)
    try:
        with np.errstate(all="ignore"):
            strategy.tell(list(zip(solutions, ranks.tolist(), strict=True)))
        if all(np.isfinite(getattr(strategy, name, 0.0)).all() for name in STATE) and _positive(strategy):
            return True
    except np.linalg.LinAlgError:
        pass
    for name, value in before.items():
        setattr(strategy, name, value)
    return False


def _positive(strategy: Strategy) -> bool:
    variances: NDArray[np.float64] = np.diag(getattr(strategy, "_C", np.eye(1)))
    return bool((variances > 0).all() and getattr(strategy, "_sigma", 1.0) > 0)
