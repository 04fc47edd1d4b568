"""Access to the state of strategies of the library `cmaes`, shared by the optimizers that use it.

The library has no bounds on step sizes, accepts only points of its own distribution, and does not check its numbers.
It keeps its state in private attributes; the pinned version has those that are used here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evosearch.search.optimizers._generations import Point

Strategy = Any  # cmaes.CMA or cmaes.CatCMAwM
STATE = ("_mean", "_sigma", "_C", "_q", "_Delta")  # attributes that later draws depend on


def standard_deviations(strategy: Strategy) -> Point:
    """Return σ √C_ii of each coordinate."""
    return np.asarray(strategy._sigma * np.sqrt(np.diag(strategy._C)))


def draw(strategy: Strategy, spread: Point | float = 1.0) -> Point:
    """Draw m + σ A B D z, z ~ N(0, I). The library's own `ask` multiplies B by D for every draw, in O(N³).

    Args:
        strategy: The strategy to draw from.
        spread: A, the factor of each coordinate's step.
    """
    axes, lengths = strategy._eigen_decomposition()
    step = axes @ (lengths * strategy._rng.standard_normal(len(lengths)))
    return np.asarray(strategy._mean + strategy._sigma * spread * step)


def scale(strategy: Strategy, factors: Point) -> None:
    """Multiply each coordinate's standard deviation and keep correlations: C ← S C S."""
    if np.any(factors != 1.0):
        strategy._C = strategy._C * np.outer(factors, factors)
        strategy._B = strategy._D = None  # decompose again


def limit_steps(strategy: Strategy, least: Point, greatest: Point) -> None:
    """Clip standard deviations, coordinate by coordinate."""
    steps = standard_deviations(strategy)
    scale(strategy, np.where(steps > 0, np.clip(steps, least, greatest) / np.where(steps > 0, steps, 1.0), 1.0))


def brought_near(strategy: Strategy, point: Point, spread: Point | float = 1.0) -> Point:
    """Move a point drawn from another distribution to within the distance of a draw from the current one.

    Its Mahalanobis length is cut at √N + 2N / (N + 2), which bounds its effect on step sizes and covariances
    (Hansen 2011, arXiv:1110.4181; the cut is pycma's).

    Args:
        strategy: The current strategy.
        point: (N,) the point.
        spread: As in `draw`.
    """
    axes, lengths = strategy._eigen_decomposition()
    step = point - strategy._mean
    length = float(np.linalg.norm((axes.T @ (step / spread)) / (lengths * strategy._sigma)))
    longest = len(point) ** 0.5 + 2.0 * len(point) / (len(point) + 2.0)
    return np.asarray(strategy._mean + step * min(1.0, longest / length) if length > 0 else point)


def tell(strategy: Strategy, solutions: Sequence[Any], losses: Sequence[float]) -> bool:
    """Update the distribution.

    The library is told ranks: its other uses of values are a stopping criterion for flat fitness and penalties for
    bounds, which are not set here.

    Returns:
        False if the update would leave numbers that are not finite or a covariance matrix that is not positive; the
        strategy is then unchanged.
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
