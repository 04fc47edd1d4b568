"""CMA-ES that adapts its learning rates to noise (Nomura, Akimoto & Ono 2023, arXiv:2304.03473), by cmaes."""

from collections.abc import Sequence

import cmaes
import numpy as np

from evosearch.search.optimizers import _cmaes
from evosearch.search.optimizers._generations import (
    WIDEST,
    Generations,
    Point,
    least_steps,
    mean_rate,
    reflected,
    units,
    values,
)
from evosearch.search.optimizers.registry import OptimizerConfig, Problem, optimizer
from evosearch.search.space.types import Genome


@optimizer("lra_cma", options=("sigma",), least_population=4, asynchronous=True)
class LraCma(Generations[Point]):
    """Numbers only, each scaled to [0, 1]; bounds are kept by reflection, so the start is where it was said to be.

    Unlike `cma_es` this one is told of the mirror images, as draws of its own. Told of the draws, a mean beside a bound
    sees the same landscape on both sides: no signal, so learning rates fall and steps grow until it never leaves.

    The learning rates of mean and covariance follow the signal-to-noise ratio of their updates, so that where fitness
    is measured on few items a default population does what otherwise takes a larger one, at the price of more
    generations where there is little noise: rates fall before there is evidence. The covariance matrix is full.

    Asynchronously it is told of λ results of any age, as `cma_es` is.
    """

    def __init__(self, config: OptimizerConfig, problem: Problem) -> None:
        self._dimensions = problem.dimensions
        start = np.array(units(self._dimensions, problem.start))
        self._strategy = cmaes.CMA(
            start, min(config.sigma, WIDEST), seed=config.seed, population_size=config.population, lr_adapt=True
        )
        super().__init__(self._strategy.population_size, config.asynchronous)
        self._greatest = np.full(len(start), WIDEST)
        self._exhausted = False

    def stop_reason(self) -> str | None:
        if self._exhausted:
            return "lra_cma: its covariance matrix is at the end of what numbers can hold"
        if self._updates and self._strategy.should_stop():
            return f"lra_cma: converged, to steps of at most {_cmaes.standard_deviations(self._strategy).max():.1e}"
        return None

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
