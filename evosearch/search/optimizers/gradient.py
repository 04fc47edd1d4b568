"""Projected Adam (Kingma & Ba 2015, arXiv:1412.6980) on minibatches of the search split, with averaged iterates."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evosearch.errors import SpecError
from evosearch.search.optimizer import Problem
from evosearch.search.optimizers.registry import Option, optimizer
from evosearch.search.pending import Pending
from evosearch.search.space.dimensions import Dimension, Evaluation, Genome, Observation

Point = NDArray[np.float64]  # (N,) in [0, 1], on each dimension's own scale
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8
CHECKPOINTS = (0.25, 0.5, 1.0)  # fractions of the steps whose averages are recommended if nothing is held back


def check_numbers(dimensions: Sequence[Dimension], **options: float) -> None:
    """Refuse dimensions that have no derivative.

    Raises:
        SpecError: A dimension has whole numbers.
    """
    whole = next((dimension.name for dimension in dimensions if dimension.kind == "int"), None)
    if whole is not None:
        what = f"gradient takes only real numbers, but {whole} has whole ones"
        raise SpecError("name", what, "cma_es and cat_cma take whole numbers", "Use one of them, or remove integer")


@optimizer(
    "gradient",
    population=1,
    options={
        "rate": Option(float, 0.03, "Step size, as a fraction of each dimension's range.", gt=0, le=1),
        "average": Option(float, 0.5, "Share of the latest iterates whose mean is a candidate.", gt=0, le=1),
        "pull": Option(float, 0.0, "Pull to the start: a step goes back `rate` times this of the way.", ge=0, le=1),
        "check_every": Option(
            int, 8, "Steps between two scorings of the averaged iterate on the held-back part.", ge=1
        ),
        "patience": Option(int, 6, "Scorings in a row without an improvement after which the search stops.", ge=1),
    },
    gradients=True,
    fits=check_numbers,
)
class Gradient:
    """Adam over numbers, each scaled to [0, 1], projected on the bounds after every step.

        xₜ₊₁ = Π(xₜ + α m̂ₜ / (√v̂ₜ + ε) − α p (xₜ − x₀))

    Π clips to [0, 1]; m̂ₜ and v̂ₜ are Adam's moments, of the gradients on minibatches 1 to t. The rate α is constant, so
    that the steps do not depend on the budget, which may be extended; the mean of the latest half of the iterates takes
    the place of a decaying rate (Polyak & Juditsky 1992, doi:10.1137/0330046). The pull p is decoupled from the
    gradient (Loshchilov & Hutter 2019, arXiv:1711.05101), and so from the unit of the fitness.

    A step is one ask for each shard of its minibatch, all at the same point; their gradients are added in ask order.
    After every `check_every` steps, the averaged iterate is asked for and scored on the held-back part; it stops the
    search if it no longer improves. If no part is held back, the averages after a quarter, a half and all of the steps
    are recommended at the end.

    Failed shards are left out of their step. If all fail, the step is not taken, and the point moves half of the way
    back to the last one that had a gradient.
    """

    def __init__(
        self, problem: Problem, *, rate: float, average: float, pull: float, check_every: int, patience: int
    ) -> None:
        self._dimensions, self._shards = problem.dimensions, problem.population
        self._minibatches, self._held_back = problem.minibatches, problem.held_back
        self._rate, self._average, self._pull = rate, average, pull
        self._check_every, self._patience = check_every, patience
        self._first = dict(problem.start)  # which rounding must not change
        self._start = np.array([d.to_unit(problem.start[d.name]) for d in problem.dimensions], dtype=np.float64)
        self._adam = _Adam(len(self._start))
        self._point, self._last_good = self._start.copy(), self._start.copy()
        self._iterates = _Iterates([np.zeros_like(self._start)])
        self._iterates.add(self._point)
        self._pending: Pending[int] = Pending()  # each with its ask index
        self._asked = 0
        self._told: dict[int, Point | None] = {}  # shard of this step → gradient, None if it failed
        self._best: tuple[float, float] | None = None  # least (violation, -fitness) of an averaged iterate
        self._checks_since_best = 0

    @property
    def population(self) -> int:
        """Number of shards of the step, and the averaged iterate before it if it is due, that are not asked yet."""
        shard = self._shard(self._asked)
        return self._shards + 1 if shard is None else self._shards - shard

    def evaluation(self, index: int) -> Evaluation:
        """See `AsksForGradients.evaluation`."""
        shard = self._shard(index)
        if shard is None:
            return Evaluation()
        return Evaluation(self._step_of(index) % self._minibatches * self._shards + shard, gradient=True)

    def ask(self, n: int) -> list[Genome]:
        """Propose the current point for each shard, and the averaged iterate where it is due."""
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Collect the shards of a step, and take it once all are known."""
        for observation in observations:
            shard = self._shard(self._pending.take(observation.genome))
            if shard is None:
                self._judge(observation)
                continue
            assert (observation.gradient is None) == (observation.state == "failed"), "a gradient was asked for"
            self._told[shard] = None if observation.gradient is None else self._scaled(observation)
        if len(self._told) == self._shards:
            told, self._told = self._told, {}
            self._step([found for _, found in sorted(told.items()) if found is not None])

    def stop_reason(self) -> str | None:
        """Return why to stop, if the averaged iterate has stopped to improve on the held-back part."""
        if self._checks_since_best < self._patience:
            return None
        return f"gradient: no improvement on the held-back part in {self._patience} scorings"

    def answers(self) -> list[Genome]:
        """Return averaged iterates; see `Recommends.answers`."""
        steps = self._iterates.count - 1
        ends = [round(steps * share) for share in ((1.0,) if self._held_back else CHECKPOINTS)]
        return [self._genome(self._iterates.mean(self._average, end + 1)) for end in dict.fromkeys(ends) if end > 0]

    def _shard(self, index: int) -> int | None:
        """Return the shard of an ask; None for the averaged iterate."""
        if not self._held_back:
            return index % self._shards
        place = (index + 1) % (self._check_every * self._shards + 1)  # 0 before the steps of every cycle but the first
        return (place - 1) % self._shards if place else None

    def _step_of(self, index: int) -> int:
        averages = (index + 1) // (self._check_every * self._shards + 1) if self._held_back else 0
        return (index - averages) // self._shards

    def _ask_one(self) -> Genome:
        shard, waiting = self._shard(self._asked), len(self._pending)
        if shard == 0 and self._asked > 0 and self._shard(self._asked - 1) is None:
            waiting = max(0, waiting - 1)  # the averaged iterate is asked for together with the next step
        assert shard or not waiting, "a step must be told before the next is asked"
        genome = self._genome(self._iterates.mean(self._average) if shard is None else self._point)
        self._pending.add(genome, self._asked)
        self._asked += 1
        return dict(genome)

    def _judge(self, observation: Observation) -> None:
        value = observation.value
        standing = None if value is None else (observation.violation, -value)
        if standing is not None and (self._best is None or standing < self._best):
            self._best, self._checks_since_best = standing, 0
        else:
            self._checks_since_best += 1

    def _scaled(self, observation: Observation) -> Point:
        """Return the gradient on the scale of the point, by the chain rule."""
        assert observation.gradient is not None
        genome, slopes = observation.genome, observation.gradient
        return np.array([slopes[d.name] * _slope(d, float(genome[d.name])) for d in self._dimensions])

    def _step(self, gradients: Sequence[Point]) -> None:
        if not gradients:
            self._point = (self._point + self._last_good) / 2.0
            return
        total = gradients[0]
        for gradient in gradients[1:]:
            total = total + gradient
        self._last_good = self._point
        back = self._pull * (self._point - self._start)
        self._point = np.clip(self._point + self._rate * (self._adam.direction(total) - back), 0.0, 1.0)
        self._iterates.add(self._point)

    def _genome(self, point: Point) -> Genome:
        if np.array_equal(point, self._start):
            return dict(self._first)
        return {d.name: d.from_unit(float(unit)) for d, unit in zip(self._dimensions, point, strict=True)}


class _Adam:
    """Moments of the gradient, and the direction of the next step."""

    def __init__(self, dimensions: int) -> None:
        self._first, self._second, self._steps = np.zeros(dimensions), np.zeros(dimensions), 0

    def direction(self, gradient: Point) -> Point:
        """Return m̂ₜ / (√v̂ₜ + ε)   (Kingma & Ba 2015, algorithm 1)."""
        self._steps += 1
        self._first = BETA1 * self._first + (1.0 - BETA1) * gradient
        self._second = BETA2 * self._second + (1.0 - BETA2) * gradient * gradient
        first = self._first / (1.0 - BETA1**self._steps)
        second = self._second / (1.0 - BETA2**self._steps)
        return np.asarray(first / (np.sqrt(second) + EPSILON))


@dataclass
class _Iterates:
    """Means of iterates, from cumulative sums: `sums[t]` is the sum of the first t iterates."""

    sums: list[Point] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of iterates, the start included."""
        return len(self.sums) - 1

    def add(self, point: Point) -> None:
        """Append an iterate."""
        self.sums.append(self.sums[-1] + point)

    def mean(self, share: float, end: int | None = None) -> Point:
        """Return the mean of the latest `share` of the first `end` iterates, or of all."""
        end = end or self.count
        first = min(end - 1, int(end * (1.0 - share)))
        return np.asarray(np.clip((self.sums[end] - self.sums[first]) / (end - first), 0.0, 1.0))


def _slope(dimension: Dimension, value: float) -> float:
    """Return d value / d unit: how fast a value changes with its place in [0, 1]."""
    if dimension.log:
        return value * (np.log(dimension.high) - np.log(dimension.low))
    return dimension.high - dimension.low
