"""From single asks and tells to the updates of a distribution. Shared by the CMA kinds.

One of these optimizers draws from a distribution and learns from λ draws together. Synchronously these λ are a
generation: drawn from one distribution, told in ask order when the last has come back. Asynchronously the next λ that
come back are taken, whatever distribution they were drawn from, so that a straggler holds nobody.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from evosearch.search.optimizers._pending import Pending
from evosearch.search.space.types import Dimension, Genome, Observation

Point = NDArray[np.float64]  # (N,) of the unbounded space a normal distribution lives in
S = TypeVar("S")  # what an optimizer draws

WIDEST = (
    1 / 3
)  # standard deviation, as a part of a dimension's range: beyond, reflection makes every step a uniform draw
# A step of at least a fifth of a whole number keeps integers moving (Hansen 2011, arXiv:1102.0883)
LEAST_INTEGER_STEP = 0.2


@dataclass(frozen=True)
class _Asked(Generic[S]):
    """One draw: its place in its generation, and how many updates and restarts came before it."""

    index: int
    sample: S
    update: int
    run: int


class Generations(ABC, Generic[S]):
    """The asking and telling of an optimizer that learns from λ draws together.

    A subclass draws, says what genome a draw is, and learns. Learning may `_restart`: what was drawn before and comes
    back later is no news to the new distribution.
    """

    def __init__(self, size: int, asynchronous: bool) -> None:
        self._size = size  # λ
        self._asynchronous = asynchronous
        self._pending: Pending[_Asked[S]] = Pending()
        self._drawn: list[S] = []  # this generation, in ask order; empty where asynchronous
        self._handed = 0  # how many of it were asked
        self._told: dict[int, tuple[_Asked[S], Observation]] = {}  # place in the generation or of arrival → what came
        self._updates = 0
        self._run = 0

    @property
    def population(self) -> int:
        """λ; at a generation's second ask and later, what is left of it."""
        return self._size - self._handed

    def ask(self, n: int) -> list[Genome]:
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            asked = self._pending.take(observation.genome)
            if asked.run != self._run:
                continue
            self._told[len(self._told) if self._asynchronous else asked.index] = asked, observation
            if len(self._told) == self._size:
                self._update()

    @abstractmethod
    def stop_reason(self) -> str | None: ...

    @abstractmethod
    def _draw(self, n: int) -> list[S]:
        """`n` draws from the present distribution."""

    @abstractmethod
    def _genome(self, sample: S) -> Genome:
        """What is asked for: within bounds, inactive dimensions at their `init`."""

    @abstractmethod
    def _learn(self, samples: Sequence[S], losses: Sequence[float], lags: Sequence[int]) -> None:
        """Update the distribution.

        Args:
            samples: λ of them.
            losses: smaller is better; only their order means anything.
            lags: how many updates there were since each was drawn; 0 where synchronous.
        """

    def _restart(self, size: int) -> None:
        """From here on another distribution is drawn from, `size` at a time."""
        self._size = size
        self._run += 1

    def _ask_one(self) -> Genome:
        if self._asynchronous:
            index, sample = 0, self._draw(1)[0]
        else:
            if not self._drawn:
                self._drawn = self._draw(self._size)
            assert self._handed < self._size, "a generation is told before the next is asked"
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
    """How much of a step the mean takes, given how many updates ago its λ points were drawn: 1 / (1 + mean lag).

    Learning rates in inverse proportion to staleness are those of Zhang et al. 2016 (arXiv:1511.05950). With a full
    step, points that were drawn around W means of long ago would replace the mean by one of these: W searches that take
    turns and share one step size.
    """
    return 1.0 / (1.0 + sum(lags) / len(lags))


def losses(observations: Sequence[Observation]) -> list[float]:
    """What is minimized: the feasible by value, behind them the infeasible by violation, behind these the failures.

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


def reflected(point: Point) -> Point:
    """The mirror image of a point in [0, 1]: a triangle wave. Inside, that is the point itself, also on a bound."""
    return 1.0 - np.abs(1.0 - np.mod(point, 2.0))


def values(dimensions: Sequence[Dimension], point: Point) -> Genome:
    """The genome at a point, of numbers each scaled to [0, 1]; coordinates beyond the dimensions idle."""
    return {d.name: d.from_unit(float(unit)) for d, unit in zip(dimensions, reflected(point), strict=False)}


def units(dimensions: Sequence[Dimension], genome: Genome) -> list[float]:
    """Where numbers lie in [0, 1]."""
    return [dimension.to_unit(genome[dimension.name]) for dimension in dimensions]


def least_steps(dimensions: Sequence[Dimension], mean: Point) -> list[float]:
    """The least standard deviation of each dimension where the mean is, in [0, 1]; 0 for floats."""
    return [_least_step(d, float(unit)) for d, unit in zip(dimensions, reflected(mean), strict=False)]


def _least_step(dimension: Dimension, unit: float) -> float:
    """A fifth of a whole number's share of [0, 1].

    In the logarithm that of 1 is a hundred times that of 100: what moves the one would throw the other about.
    """
    if dimension.kind != "int":
        return 0.0
    if not dimension.log:
        return LEAST_INTEGER_STEP / (dimension.high - dimension.low + 1)
    number = float(dimension.from_unit(unit))
    return LEAST_INTEGER_STEP * (dimension.to_unit(number + 0.5) - dimension.to_unit(number - 0.5))
