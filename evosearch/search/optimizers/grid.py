"""Every combination of evenly spaced values, for one or two holes: a picture of what these do."""

from collections.abc import Sequence
from itertools import product

from evosearch.errors import SpecError
from evosearch.recipe.shapes import Scalar
from evosearch.search.optimizers._pending import Pending, same
from evosearch.search.optimizers.registry import OptimizerConfig, Problem, optimizer
from evosearch.search.space.types import Dimension, Genome, Observation

POINTS = 11  # of a number, where the spec says nothing
MOST = 100_000  # combinations: beyond, nobody looks at them all


@optimizer("grid", options=("points",), categoricals=True, asynchronous=True, objectives=True)
class Grid:
    """The start, then the grid from coarse to fine, then it stops.

    A number has `points` values from its lower to its upper bound, both included, spaced evenly (in the logarithm,
    where its hole is `log`); a whole number no more than it has; a categorical its choices. From coarse to fine means:
    ends first, then middles, then the middles between these, so that a budget that ends early leaves a coarser grid
    and not a corner of a fine one.
    """

    def __init__(self, config: OptimizerConfig, problem: Problem) -> None:
        dimensions = problem.dimensions
        if len(dimensions) > 2:
            names = ", ".join(dimension.name for dimension in dimensions[:3])
            what = f"grid takes one or two dimensions, and the recipe's holes have {len(dimensions)} ({names}, ...)"
            next = "Fix the others, give several holes one `name`, leave out `per`, or take another optimizer"
            raise SpecError("name", what, next=next)
        axes = [_axis(dimension, config.points or POINTS) for dimension in dimensions]
        count = 1
        for axis in axes:
            count *= len(axis)
        if count > MOST:
            raise SpecError("points", f"makes {count:,} combinations", f"At most {MOST:,}", "Take fewer points")
        self._size = config.population or 8
        self._left = _ordered(dimensions, axes, problem.start)
        self._left.reverse()  # the next is popped from the end
        self._count = len(self._left)
        self._pending: Pending[None] = Pending()

    @property
    def population(self) -> int:
        return max(1, min(self._size, len(self._left)))

    def ask(self, n: int) -> list[Genome]:
        assert n <= len(self._left), "nothing is left to ask"
        asked = [self._left.pop() for _ in range(n)]
        for genome in asked:
            self._pending.add(genome, None)
        return [dict(genome) for genome in asked]

    def tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            self._pending.take(observation.genome)

    def stop_reason(self) -> str | None:
        return None if self._left else f"grid: all {self._count} points are asked"


def _axis(dimension: Dimension, points: int) -> list[tuple[int, Scalar]]:
    """(level, value) of the values of one dimension in their order; level 0 is the coarsest."""
    if dimension.kind == "categorical":
        return [(0, choice) for choice in dimension.choices]
    whole = dimension.kind == "int"
    count = min(points, int(dimension.high - dimension.low) + 1) if whole else points
    values = list(dict.fromkeys(_value(dimension, index / (count - 1)) for index in range(count) if count > 1))
    if not values:
        return [(0, dimension.init)]
    return list(zip(_levels(len(values)), values, strict=True))


def _value(dimension: Dimension, unit: float) -> Scalar:
    """From bound to bound: whole numbers are not in bins here, so that 0 is the lower bound and 1 the upper."""
    low, high = dimension.low, dimension.high
    number = low * (high / low) ** unit if dimension.log else low + unit * (high - low)
    return dimension.clip(number)


def _levels(count: int) -> list[int]:
    """Of each of `count` places in a row, in which halving it comes: 0 the ends, 1 the middle, 2 the quarters, ..."""
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
    """The start and every combination, coarse ones first, none twice: of an inactive dimension only its init."""
    found: dict[tuple[Scalar, ...], tuple[int, Genome]] = {}
    for combination in product(*axes):
        genome = {d.name: value for d, (_, value) in zip(dimensions, combination, strict=True)}
        genome = {d.name: genome[d.name] if d.active(genome) else d.init for d in dimensions}
        level = max((level for level, _ in combination), default=0)
        found.setdefault(tuple(genome.values()), (level, genome))
    coarse_first = [genome for _, genome in sorted(found.values(), key=lambda entry: entry[0])]
    return [dict(start), *(genome for genome in coarse_first if not same(genome, start))]
