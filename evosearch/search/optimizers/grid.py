"""Grid search over every combination of evenly spaced values, to plot the effect of one or two holes."""

import math
from collections.abc import Sequence
from itertools import product

from evosearch.errors import SpecError
from evosearch.recipe.shapes import Scalar
from evosearch.search.optimizer import Problem
from evosearch.search.optimizers.registry import Option, optimizer
from evosearch.search.pending import Pending, same
from evosearch.search.space.dimensions import Dimension, Genome, Observation

MOST = 100_000  # combinations


def _check(dimensions: Sequence[Dimension], points: int) -> None:
    """Check the size of the grid.

    Raises:
        SpecError: There are more than two dimensions or too many combinations.
    """
    if len(dimensions) > 2:
        names = ", ".join(dimension.name for dimension in dimensions[:3])
        what = f"grid takes one or two dimensions, but the recipe's holes have {len(dimensions)} ({names}, ...)"
        next = "Fix the others, give several holes one `name`, remove `per`, or use another optimizer"
        raise SpecError("name", what, next=next)
    count = math.prod(len(_axis(dimension, points)) for dimension in dimensions)
    if count > MOST:
        raise SpecError("points", f"makes {count:,} combinations", f"At most {MOST:,}", "Use fewer points")


@optimizer(
    "grid",
    population=8,
    options={"points": Option(int, 11, "Number of values of each numeric dimension.", ge=2, le=10_000)},
    categoricals=True,
    asynchronous=True,
    objectives=True,
    fits=_check,
)
class Grid:
    """Proposes the start, then the grid from coarse to fine, then stops.

    A number has `points` values from its lower to its upper bound, both included, spaced evenly (in the logarithm if
    its hole is `log`); a whole number has at most as many as there are; a categorical has its choices. From coarse to
    fine means: ends first, then middles, then the middles between these, so that a budget that ends early leaves a
    coarser grid instead of a corner of a fine one.
    """

    def __init__(self, problem: Problem, *, points: int) -> None:
        dimensions = problem.dimensions
        axes = [_axis(dimension, points) for dimension in dimensions]
        self._size = problem.population
        self._left = _ordered(dimensions, axes, problem.start)
        self._left.reverse()  # the next is popped from the end
        self._count = len(self._left)
        self._pending: Pending[None] = Pending()

    @property
    def population(self) -> int:
        """Number of candidates to propose together next."""
        return max(1, min(self._size, len(self._left)))

    def ask(self, n: int) -> list[Genome]:
        """Propose the next `n` points."""
        assert n <= len(self._left), "nothing is left to ask"
        asked = [self._left.pop() for _ in range(n)]
        for genome in asked:
            self._pending.add(genome, None)
        return [dict(genome) for genome in asked]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Drop the pending genomes; results change nothing."""
        for observation in observations:
            self._pending.take(observation.genome)

    def stop_reason(self) -> str | None:
        """Return a reason if every point is proposed."""
        return None if self._left else f"grid: all {self._count} points are proposed"


def _axis(dimension: Dimension, points: int) -> list[tuple[int, Scalar]]:
    """Return (level, value) of the values of one dimension, in their order; level 0 is the coarsest."""
    if dimension.kind == "categorical":
        return [(0, choice) for choice in dimension.choices]
    count = min(points, int(dimension.high - dimension.low) + 1) if dimension.kind == "int" else points
    values = list(dict.fromkeys(_value(dimension, index / (count - 1)) for index in range(count) if count > 1))
    if not values:
        return [(0, dimension.init)]
    return list(zip(_levels(len(values)), values, strict=True))


def _value(dimension: Dimension, unit: float) -> Scalar:
    """Return the value at `unit`; unlike in `Dimension.from_unit`, 0 and 1 are the bounds of whole numbers too."""
    low, high = dimension.low, dimension.high
    number = low * (high / low) ** unit if dimension.log else low + unit * (high - low)
    return dimension.clip(number)


def _levels(count: int) -> list[int]:
    """Return the halving that each of `count` places belongs to: 0 the ends, 1 the middle, 2 the quarters, ..."""
    levels = [0] * count
    gaps, level = [(0, count - 1)], 0
    while gaps:
        level += 1
        parted = []
        for low, high in gaps:
            if high - low > 1:
                middle = (low + high) // 2
                levels[middle] = level
                parted += [(low, middle), (middle, high)]
        gaps = parted
    return levels


def _ordered(dimensions: Sequence[Dimension], axes: Sequence[list[tuple[int, Scalar]]], start: Genome) -> list[Genome]:
    """Return the start and every combination once, coarse ones first; an inactive dimension has only its init."""
    found: dict[tuple[Scalar, ...], tuple[int, Genome]] = {}
    for combination in product(*axes):
        genome = {d.name: value for d, (_, value) in zip(dimensions, combination, strict=True)}
        genome = {d.name: genome[d.name] if d.active(genome) else d.init for d in dimensions}
        level = max((level for level, _ in combination), default=0)
        found.setdefault(tuple(genome.values()), (level, genome))
    coarse_first = [genome for _, genome in sorted(found.values(), key=lambda entry: entry[0])]
    return [dict(start), *(genome for genome in coarse_first if not same(genome, start))]
