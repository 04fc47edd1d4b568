"""CMA-ES with active covariance updates (Hansen 2016, arXiv:1604.00772), by pycma."""

import math
from collections.abc import Sequence
from typing import Any

import cma
import numpy as np
from cma.sigma_adaptation import CMAAdaptSigmaCSA

from evosearch.search.optimizer import Problem
from evosearch.search.optimizers._generations import (
    SIGMA,
    WIDEST,
    Generations,
    Point,
    default_population,
    least_steps,
    mean_rate,
    units,
    values,
)
from evosearch.search.optimizers.registry import Option, optimizer
from evosearch.search.space.dimensions import Genome


@optimizer(
    "cma_es",
    population=default_population,
    options={
        "sigma": SIGMA,
        "diagonal": Option(bool, False, "Learn only variances: faster, for hundreds of dimensions."),
        "restarts": Option(
            int, 0, "How often a converged search starts again, with twice the population.", ge=0, le=20
        ),
    },
    least_population=4,
    asynchronous=True,
)
class CmaEs(Generations[Point]):
    """CMA-ES over numbers, each scaled to [0, 1]; bounds are kept by reflection.

    `diagonal` learns only variances, in linear time (Ros & Hansen 2008, doi:10.1007/978-3-540-87700-4_30). `restarts`
    starts again, when pycma's own criteria would stop, with twice the population from a uniformly drawn point (IPOP,
    Auger & Hansen 2005, doi:10.1109/CEC.2005.1554902).

    In asynchronous mode pycma learns from λ results of any age. It treats every point as injected: one that is further
    from the mean than a draw would be is moved nearer along its direction (Hansen 2011, arXiv:1110.4181), and the mean
    moves by `mean_rate`. Step sizes then always come from the evolution path: two-point adaptation, pycma's default
    from 300 dimensions on, must know which two points of a generation are its own.
    """

    def __init__(self, problem: Problem, *, sigma: float, diagonal: bool, restarts: int) -> None:
        super().__init__(problem.population, problem.asynchronous)
        self._sigma, self._diagonal, self._restarts, self._seed = sigma, diagonal, restarts, problem.seed
        self._dimensions = problem.dimensions
        # pycma bounds step sizes wrongly in one dimension, so an unused second one is added
        start = units(self._dimensions, problem.start)
        self._strategy = self._new(np.array(start if len(start) > 1 else [*start, 0.5]))

    def stop_reason(self) -> str | None:
        """Return pycma's termination criteria that are met."""
        reasons = self._strategy.stop()
        return f"cma_es: {', '.join(sorted(reasons))}" if reasons else None

    def _centre(self) -> Genome:
        return values(self._dimensions, np.asarray(self._strategy.mean))

    def _draw(self, n: int) -> list[Point]:
        # Without a number, pycma adds the points that two-point adaptation and mirrors need
        return [np.asarray(point) for point in (self._strategy.ask(n) if self._asynchronous else self._strategy.ask())]

    def _genome(self, sample: Point) -> Genome:
        return values(self._dimensions, sample)

    def _learn(self, samples: Sequence[Point], losses: Sequence[float], lags: Sequence[int]) -> None:
        if self._asynchronous:
            self._strategy.sp.cmean = mean_rate(lags)
            self._strategy.ask(1)  # pycma insists on an ask between two tells
        self._strategy.tell(list(samples), list(losses))
        self._strategy.opts["minstd"] = self._least(self._strategy.mean)  # of the next update
        if self._run < self._restarts and self._strategy.stop():
            self._restart(2 * self._size)
            rng = np.random.default_rng((self._seed, self._run, 0))
            self._strategy = self._new(rng.random(self._strategy.N))

    def _least(self, mean: Point) -> Point | float:
        least = least_steps(self._dimensions, mean)
        return np.array([*least, 0.0])[: len(mean)] if any(least) else 0.0

    def _new(self, start: Point) -> cma.CMAEvolutionStrategy:
        seed = (self._seed, self._run) if self._run else self._seed
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {
            "popsize": self._size,
            # pycma reseeds and draws from numpy's global generator unless it is given one; NaN: do not seed
            "randn": lambda size, dimensions: rng.standard_normal((size, dimensions)),
            "seed": math.nan,
            "minstd": self._least(start),
            "maxstd": WIDEST,
            # Accuracy on few items can be flat for generations, which is not a reason to stop
            "tolflatfitness": 10**9,
            "tolfun": 0,
            "tolfunhist": 0,
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
            "signals_filename": "",  # read no file of the working directory (None would mean its default name)
        }
        if self._diagonal:
            options["CMA_diagonal"] = True
        if self._asynchronous:
            options |= {"AdaptSigma": CMAAdaptSigmaCSA, "CMA_mirrors": 0}  # both need points that they drew themselves
        return cma.CMAEvolutionStrategy(start, self._sigma, options)
