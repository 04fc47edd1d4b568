"""CMA-ES with active covariance updates (Hansen 2016, arXiv:1604.00772), by pycma."""

import math
from collections.abc import Sequence

import cma
import numpy as np
from numpy.typing import NDArray

from evosearch.search.optimizers._pending import Pending
from evosearch.search.optimizers.registry import OptimizerConfig, optimizer
from evosearch.search.types import Dimension, Genome, Observation

Point = NDArray[np.float64]  # (N,) of the unbounded space CMA-ES works in


def default_population(dimensions: int) -> int:
    """λ = 4 + ⌊3 ln n⌋   (Hansen 2016, eq. 48)."""
    return 4 + int(3 * math.log(max(dimensions, 1)))


@optimizer("cma_es", options=("sigma",), least_population=4)
class CmaEs:
    """Numbers only, each scaled to [0, 1]; told in whole generations.

    Bounds are kept by reflection: x is scored at its mirror image in [0, 1]. Inside the bounds that is x itself, so
    the start is where it was said to be, also on a bound.
    """

    def __init__(self, config: OptimizerConfig, dimensions: tuple[Dimension, ...], start: Genome) -> None:
        self._size = config.population or default_population(len(dimensions))
        self._dimensions = dimensions
        self._pending: Pending[int] = Pending()
        self._sampled: list[Point] = []  # this generation, in ask order
        self._handed = 0  # how many of it were asked
        self._told: dict[int, Observation] = {}  # index in the generation → what became of it
        self._strategy = self._start(config, self._point(start))

    @property
    def population(self) -> int:
        """λ at the start of a generation, what is left of it later."""
        return self._size - self._handed

    def ask(self, n: int) -> list[Genome]:
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            self._told[self._pending.take(observation.genome)] = observation
        if len(self._told) == self._size:
            losses = _losses([self._told[index] for index in range(self._size)])
            self._strategy.tell(self._sampled, losses)
            self._sampled, self._handed, self._told = [], 0, {}

    def stop_reason(self) -> str | None:
        reasons = self._strategy.stop()
        return f"cma_es: {', '.join(sorted(reasons))}" if reasons else None

    def _ask_one(self) -> Genome:
        if not self._sampled:
            self._sampled = [np.asarray(point) for point in self._strategy.ask()]
        assert self._handed < self._size, "a generation is told before the next is asked"
        point = self._sampled[self._handed]
        inside = 1.0 - np.abs(1.0 - np.mod(point, 2.0))  # triangle wave: the mirror image in [0, 1]
        genome = {d.name: d.from_unit(float(unit)) for d, unit in zip(self._dimensions, inside, strict=False)}
        self._pending.add(genome, self._handed)
        self._handed += 1
        return dict(genome)

    def _point(self, genome: Genome) -> Point:
        """A genome in CMA-ES's space. pycma bounds step sizes wrongly in one dimension: there a second one idles."""
        units = [dimension.to_unit(genome[dimension.name]) for dimension in self._dimensions]
        return np.array(units if len(units) > 1 else [*units, 0.5])

    def _start(self, config: OptimizerConfig, start: Point) -> cma.CMAEvolutionStrategy:
        rng = np.random.default_rng(config.seed)
        # A step of at least a fifth of a whole number keeps integers moving (Hansen 2011, arXiv:1102.0883)
        least = [0.2 / (d.high - d.low + 1) if d.kind == "int" else 0.0 for d in self._dimensions]
        return cma.CMAEvolutionStrategy(
            start,
            config.sigma,
            {
                "popsize": self._size,
                # pycma reseeds and draws from numpy's global generator unless it is given one; NaN means: do not seed
                "randn": lambda size, dimensions: rng.standard_normal((size, dimensions)),
                "seed": math.nan,
                "minstd": np.array([*least, 0.0])[: len(start)] if any(least) else 0.0,
                "maxstd": 1 / 3,  # beyond, reflection makes every step a uniform draw
                # Accuracy on few items is flat for generations: that is no reason to stop
                "tolflatfitness": 10**9,
                "tolfun": 0,
                "tolfunhist": 0,
                "verbose": -9,
                "verb_log": 0,
                "verb_disp": 0,
                "signals_filename": "",  # reads no file of the working directory (None would mean its default name)
            },
        )


def _losses(observations: Sequence[Observation]) -> list[float]:
    """What pycma minimizes: the feasible by value, behind them the infeasible by violation, behind these the failures.

    Only ranks count, so steps of one unit are as good as any distance, and tell violations apart that differ in their
    last digits.
    """
    kept = [-o.value for o in observations if o.value is not None and o.violation == 0]
    worst = max(kept, default=0.0)
    step = max(1.0, abs(worst))
    ranks = sorted({o.violation for o in observations if o.value is not None and o.violation > 0})

    def loss(observation: Observation) -> float:
        if observation.value is None:
            return worst + step * (1 + len(ranks))
        if observation.violation > 0:
            return worst + step * (1 + ranks.index(observation.violation))
        return -observation.value

    return [loss(observation) for observation in observations]
