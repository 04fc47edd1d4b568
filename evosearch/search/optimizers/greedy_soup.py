"""The greedy soup (Wortsman et al. 2022, arXiv:2203.05482, recipe 1): models are added, best first, while it helps.

    soup ← {}; for each model in the order of its own score: keep it if score(soup + model) ≥ score(soup)

Made for `linear` with weights of 0 or one fixed number, which averages the models that are in. A soup under
`task_arithmetic` sums task vectors instead: each model that is added moves it further from the base.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evosearch.errors import SpecError
from evosearch.recipe.shapes import Scalar
from evosearch.search.optimizers._pending import Pending, same
from evosearch.search.optimizers.registry import OptimizerConfig, Problem, optimizer
from evosearch.search.space.types import Dimension, Genome, Observation

Rank = tuple[float, float]  # (-violation, value): larger is better (Deb 2000)

EXAMPLE = "Give each model one hole: `weight: {low: 0, high: 1}`, or `weight: {choices: [0, 1]}`"


@dataclass(frozen=True)
class _Model:
    """One model's dimension: what value leaves it out and what value takes it in."""

    name: str
    absent: Scalar
    present: Scalar


@optimizer("greedy_soup", categoricals=True, minibatches=False)
class GreedySoup:
    """First the start and every model alone, together; then one addition at a time, in the order of their scores.

    The soup is built on the models alone: the start is a yardstick. An addition that is as good is kept, one that
    failed is not, and a model that failed alone is not tried. Of n models it asks at most 2n candidates, the start
    among them, and says that it is done. `population` limits how many are asked together; nothing is random.
    """

    def __init__(self, config: OptimizerConfig, problem: Problem) -> None:
        self._models = _models(problem.dimensions)
        self._size = config.population
        alone = [self._genome({index}) for index in range(len(self._models))]
        first = [] if any(same(problem.start, genome) for genome in alone) else [dict(problem.start)]
        self._single: list[tuple[int | None, Genome]] = [*((None, genome) for genome in first), *enumerate(alone)]
        self._asked = 0  # of these
        self._told = 0
        self._pending: Pending[int | None] = Pending()  # with the model that a candidate adds
        self._ranks: dict[int, Rank] = {}  # of models alone
        self._soup: set[int] = set()
        self._rank: Rank | None = None  # the soup's
        self._left: list[int] = []  # models not yet tried in it, best first

    @property
    def population(self) -> int:
        left = len(self._single) - self._asked
        return max(1, min(self._size or left, left))

    def ask(self, n: int) -> list[Genome]:
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            model = self._pending.take(observation.genome)
            if self._told < len(self._single):
                self._told_alone(model, observation)
            else:
                self._told_added(model, observation)

    def stop_reason(self) -> str | None:
        if self._told < len(self._single) or self._left or len(self._pending):
            return None
        if not self._soup:
            return "greedy_soup: not one model could be scored alone"
        kept = ", ".join(self._models[index].name for index in sorted(self._soup))
        return f"greedy_soup: every model is tried, {len(self._soup)} of {len(self._models)} kept ({kept})"

    def _ask_one(self) -> Genome:
        if self._asked < len(self._single):
            model, genome = self._single[self._asked]
            self._asked += 1
        else:
            assert not len(self._pending), "what is asked is told before the next is asked"
            assert self._left, "nothing is left to ask"
            model = self._left[0]
            genome = self._genome(self._soup | {model})
        self._pending.add(genome, model)
        return dict(genome)

    def _told_alone(self, model: int | None, observation: Observation) -> None:
        self._told += 1
        rank = _rank(observation)
        if model is not None and rank is not None:
            self._ranks[model] = rank
        if self._told == len(self._single) and self._ranks:
            best, *self._left = sorted(self._ranks, key=lambda index: self._ranks[index], reverse=True)
            self._soup, self._rank = {best}, self._ranks[best]

    def _told_added(self, model: int | None, observation: Observation) -> None:
        added, rank = self._left.pop(0), _rank(observation)
        assert model == added
        if rank is not None and (self._rank is None or rank >= self._rank):
            self._soup.add(added)
            self._rank = rank

    def _genome(self, taken: set[int]) -> Genome:
        return {one.name: one.present if index in taken else one.absent for index, one in enumerate(self._models)}


def _rank(observation: Observation) -> Rank | None:
    return None if observation.value is None else (-observation.violation, observation.value)


def _models(dimensions: Sequence[Dimension]) -> list[_Model]:
    """What takes each model in and leaves it out.

    Raises:
        SpecError: a dimension is no weight from 0, or a model has several.
    """
    scopes: dict[str, str] = {}
    for dimension in dimensions:
        if dimension.parameter not in (None, "weight"):
            raise _refused(f"{dimension.name} is no weight")
        if dimension.scope is not None and dimension.scope in scopes:
            several = f"{scopes[dimension.scope]}, {dimension.name}"
            raise _refused(f"{dimension.scope} has several numbers ({several})")
        if dimension.scope is not None:
            scopes[dimension.scope] = dimension.name
    return [_model(dimension) for dimension in dimensions]


def _model(dimension: Dimension) -> _Model:
    name = dimension.name
    if dimension.active_if is not None:
        raise _refused(f"{name} has an effect under some choices of {dimension.active_if[0]} only")
    if dimension.kind != "categorical":
        if dimension.low != 0 or dimension.high <= 0:
            raise _refused(f"{name} lies in [{dimension.low:g}, {dimension.high:g}]")
        return _Model(name, dimension.clip(0), dimension.clip(dimension.high))
    absent = [choice for choice in dimension.choices if not isinstance(choice, str) and choice == 0]
    present = [choice for choice in dimension.choices if choice not in absent]
    if len(absent) != 1 or len(present) != 1 or isinstance(present[0], str):
        raise _refused(f"{name} has the choices {', '.join(map(str, dimension.choices))}")
    return _Model(name, absent[0], present[0])


def _refused(what: str) -> SpecError:
    return SpecError("name", f"greedy_soup takes each model in or leaves it out (weight 0), and {what}", next=EXAMPLE)
