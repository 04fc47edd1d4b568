"""CMA-ES with learning rates adapted to noise (Nomura, Akimoto & Ono 2023, arXiv:2304.03473), by cmaes."""

from collections.abc import Sequence

import cmaes
import numpy as np

from evosearch.search.optimizer import Problem
from evosearch.search.optimizers import _cmaes
from evosearch.search.optimizers._generations import (
    SIGMA,
    WIDEST,
    Generations,
    Point,
    default_population,
    least_steps,
    mean_rate,
    reflected,
    units,
    values,
)
from evosearch.search.optimizers.registry import optimizer
from evosearch.search.space.dimensions import Genome


@optimizer("lra_cma", population=default_population, options={"sigma": SIGMA}, least_population=4, asynchronous=True)
class LraCma(Generations[Point]):
    """CMA-ES with adaptive learning rates over numbers, each scaled to [0, 1]; bounds are kept by reflection.

    Unlike `cma_es`, the strategy is told the reflected points as if it had drawn them. If it were told the draws, a
    mean near a bound would see the same landscape on both sides: without a signal, learning rates would drop and steps
    grow, and the mean would stay at the bound.

    The learning rates of mean and covariance follow the signal-to-noise ratio of their updates. Where fitness is
    measured on few items, the default population is therefore as good as a larger one of `cma_es`; with little noise,
    it needs more generations. The covariance matrix is full.

    In asynchronous mode it learns from λ results of any age, as `cma_es` does.
    """

    def __init__(self, problem: Problem, *, sigma: float) -> None:
        self._dimensions = problem.dimensions
        start = np.array(units(self._dimensions, problem.start))
        self._strategy = cmaes.CMA(
            start, min(sigma, WIDEST), seed=problem.seed, population_size=problem.population, lr_adapt=True
        )
        super().__init__(problem.population, problem.asynchronous)
        self._greatest = np.full(len(start), WIDEST)
        self._exhausted = False

    def stop_reason(self) -> str | None:
        """Return a reason if the distribution has converged or diverged."""
        if self._exhausted:
            return "lra_cma diverged: its covariance matrix is numerically singular"
        if self._updates and self._strategy.should_stop():
            return f"lra_cma: converged, to steps of at most {_cmaes.standard_deviations(self._strategy).max():.1e}"
        return None

    def _centre(self) -> Genome:
        return values(self._dimensions, self._strategy._mean)

    def _draw(self, n: int) -> list[Point]:
        return [_cmaes.draw(self._strategy) for _ in range(n)]

    def _genome(self, sample: Point) -> Genome:
        return values(self._dimensions, sample)

    def _learn(self, samples: Sequence[Point], losses: Sequence[float], lags: Sequence[int]) -> None:
        strategy = self._strategy
        strategy._cm = mean_rate(lags)
        inside = [reflected(sample) for sample in samples]
        points = [_cmaes.brought_near(strategy, x) if lag else x for x, lag in zip(inside, lags, strict=True)]
        self._exhausted = not _cmaes.tell(strategy, points, losses)
        _cmaes.limit_steps(strategy, np.array(least_steps(self._dimensions, strategy._mean)), self._greatest)
