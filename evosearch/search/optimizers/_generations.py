"""Base class of the CMA optimizers, which turns single asks and tells into updates of a distribution.

These optimizers draw from a distribution and learn from λ draws together. In synchronous mode the λ draws are a
generation: drawn from one distribution, and learned from in ask order once all results are known. In asynchronous mode
an update uses the next λ results, from whichever distributions they were drawn, so that stragglers do not block it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from evosearch.search.optimizers.registry import Option
from evosearch.search.pending import Pending
from evosearch.search.space.dimensions import Dimension, Genome, Observation

Point = NDArray[np.float64]  # (N,) in the unbounded space of a normal distribution
S = TypeVar("S")  # draw of an optimizer

# Standard deviation as a fraction of a dimension's range; with larger ones, reflection makes every step a uniform draw
WIDEST = 1 / 3
# A step of at least a fifth of a whole number keeps integers moving (Hansen 2011, arXiv:1102.0883)
LEAST_INTEGER_STEP = 0.2
SIGMA = Option(float, 0.17, "First step size, as a fraction of each dimension's range.", gt=0, le=1)


def default_population(dimensions: Sequence[Dimension]) -> int:
    """λ = 4 + ⌊3 ln n⌋   (Hansen 2016, arXiv:1604.00772, eq. 48)."""
    return 4 + math.floor(3 * math.log(max(len(dimensions), 1)))


@dataclass(frozen=True)
class _Asked(Generic[S]):
    """A pending draw."""

    index: int  # place in its generation
    sample: S
    update: int  # number of updates before it
    run: int  # number of restarts before it


class Generations(ABC, Generic[S]):
    """Base class of optimizers that learn from λ draws together.

    A subclass draws, converts draws to genomes, and learns. Learning may `_restart`: results of draws of an earlier run
    are then ignored.
    """

    def __init__(self, size: int, asynchronous: bool) -> None:
        """Start the first generation of `size` draws (λ)."""
        self._size = size
        self._asynchronous = asynchronous
        self._pending: Pending[_Asked[S]] = Pending()
        self._drawn: list[S] = []  # this generation, in ask order; empty in asynchronous mode
        self._handed = 0  # number of draws of this generation that were proposed
        self._told: dict[
            int, tuple[_Asked[S], Observation]
        ] = {}  # place in the generation, or in order of arrival → result
        self._updates = 0
        self._run = 0

    @property
    def population(self) -> int:
        """λ at the start of a generation, later the number of draws that are left."""
        return self._size - self._handed

    def ask(self, n: int) -> list[Genome]:
        """Propose the next `n` draws."""
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Collect results, and learn from every λ of them."""
        for observation in observations:
            asked = self._pending.take(observation.genome)
            if asked.run != self._run:
                continue
            self._told[len(self._told) if self._asynchronous else asked.index] = asked, observation
            if len(self._told) == self._size:
                self._update()

    def answers(self) -> list[Genome]:
        """Recommend the centre of the distribution, once it has learned; see `Recommends.answers`."""
        return [self._centre()] if self._updates else []

    @abstractmethod
    def stop_reason(self) -> str | None:
        """See `Optimizer.stop_reason`."""

    @abstractmethod
    def _centre(self) -> Genome:
        """Return the centre of the current distribution: its mean, and its most probable choices."""

    @abstractmethod
    def _draw(self, n: int) -> list[S]:
        """Draw `n` times from the current distribution."""

    @abstractmethod
    def _genome(self, sample: S) -> Genome:
        """Convert a draw to a genome, within bounds, with inactive dimensions at their `init`."""

    @abstractmethod
    def _learn(self, samples: Sequence[S], losses: Sequence[float], lags: Sequence[int]) -> None:
        """Update the distribution.

        Args:
            samples: λ draws.
            losses: Smaller is better; only their order matters.
            lags: Number of updates since each was drawn; 0 in synchronous mode.
        """

    def _restart(self, size: int) -> None:
        """Start a new run with `size` draws per update; results of earlier runs are ignored."""
        self._size = size
        self._run += 1

    def _ask_one(self) -> Genome:
        if self._asynchronous:
            index, sample = 0, self._draw(1)[0]
        else:
            if not self._drawn:
                self._drawn = self._draw(self._size)
            assert self._handed < self._size, "a generation must be told before the next is asked"
            index, sample = self._handed, self._drawn[self._handed]
            self._handed += 1
        genome = self._genome(sample)
        self._pending.add(genome, _Asked(index, sample, self._updates, self._run))
        return dict(genome)

    def _update(self) -> None:
        told = [self._told[index] for index in range(self._size)]
        self._drawn, self._handed, self._told = [], 0, {}
        lags = [self._updates - asked.update for asked, _ in told]
        self._updates += 1
        self._learn([asked.sample for asked, _ in told], losses([observation for _, observation in told]), lags)


def mean_rate(lags: Sequence[int]) -> float:
    """Learning rate of the mean for λ points that were drawn some updates ago: 1 / (1 + mean lag).

    Learning rates inversely proportional to staleness follow Zhang et al. 2016 (arXiv:1511.05950). With a full step,
    points drawn around W old means would move the mean to one of these: W interleaved searches with one step size.
    """
    return 1.0 / (1.0 + sum(lags) / len(lags))


def losses(observations: Sequence[Observation]) -> list[float]:
    """Return values to minimize: feasible candidates by value, then infeasible ones by violation, then failures.

    Only ranks count, so steps of one unit are as good as any other, and they separate violations that differ only in
    their last digits.
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


def reflected(point: Point) -> Point:
    """Reflect a point into [0, 1] by a triangle wave; points inside, bounds included, stay where they are."""
    return 1.0 - np.abs(1.0 - np.mod(point, 2.0))


def values(dimensions: Sequence[Dimension], point: Point) -> Genome:
    """Return the genome at a point whose coordinates are scaled to [0, 1]; surplus coordinates are ignored."""
    return {d.name: d.from_unit(float(unit)) for d, unit in zip(dimensions, reflected(point), strict=False)}


def units(dimensions: Sequence[Dimension], genome: Genome) -> list[float]:
    """Scale the numbers of a genome to [0, 1]."""
    return [dimension.to_unit(genome[dimension.name]) for dimension in dimensions]


def least_steps(dimensions: Sequence[Dimension], mean: Point) -> list[float]:
    """Return the least standard deviation of each dimension at the mean, in [0, 1]; 0 for floats."""
    return [_least_step(d, float(unit)) for d, unit in zip(dimensions, reflected(mean), strict=False)]


def _least_step(dimension: Dimension, unit: float) -> float:
    """Return a fifth of a whole number's share of [0, 1].

    On a logarithmic scale the share of 1 is a hundred times that of 100, so one step size cannot serve both.
    """
    if dimension.kind != "int":
        return 0.0
    if not dimension.log:
        return LEAST_INTEGER_STEP / (dimension.high - dimension.low + 1)
    number = float(dimension.from_unit(unit))
    return LEAST_INTEGER_STEP * (dimension.to_unit(number + 0.5) - dimension.to_unit(number - 0.5))
