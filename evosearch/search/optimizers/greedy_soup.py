"""Greedy soup: models are added, best first, as long as the score does not fall.

Wortsman et al. 2022, arXiv:2203.05482, recipe 1:

    soup ← {}; for each model in the order of its own score: keep it if score(soup + model) ≥ score(soup)

Made for `linear` with weights of 0 or one fixed number, which averages the models that are included. Under
`task_arithmetic` it sums task vectors instead: each added model moves the soup further from the base.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evosearch.errors import SpecError
from evosearch.recipe.shapes import Scalar
from evosearch.search.optimizer import Problem
from evosearch.search.optimizers.registry import optimizer
from evosearch.search.pending import Pending, same
from evosearch.search.space.dimensions import Dimension, Genome, Observation

Rank = tuple[float, float]  # (-violation, value): larger is better (Deb 2000)

EXAMPLE = "Give each model one hole: `weight: {low: 0, high: 1}`, or `weight: {choices: [0, 1]}`"


@dataclass(frozen=True)
class _Model:
    """One model's dimension, with the values that exclude and include the model."""

    name: str
    absent: Scalar
    present: Scalar


def _check(dimensions: Sequence[Dimension]) -> None:
    """Check that each model has one weight, which can be 0.

    Raises:
        SpecError: A dimension is not such a weight, or a model has several.
    """
    scopes: dict[str, str] = {}
    for dimension in dimensions:
        if dimension.parameter not in (None, "weight"):
            raise _refused(f"{dimension.name} is not a weight")
        if dimension.scope is not None and dimension.scope in scopes:
            several = f"{scopes[dimension.scope]}, {dimension.name}"
            raise _refused(f"{dimension.scope} has several numbers ({several})")
        if dimension.scope is not None:
            scopes[dimension.scope] = dimension.name
    for dimension in dimensions:
        _model(dimension)


def _model(dimension: Dimension) -> _Model:
    name = dimension.name
    if dimension.active_if is not None:
        raise _refused(f"{name} has an effect only under some choices of {dimension.active_if[0]}")
    if dimension.kind != "categorical":
        if dimension.low != 0 or dimension.high <= 0:
            raise _refused(f"{name} is bounded to [{dimension.low:g}, {dimension.high:g}]")
        return _Model(name, dimension.clip(0), dimension.clip(dimension.high))
    absent = [choice for choice in dimension.choices if not isinstance(choice, str) and choice == 0]
    present = [choice for choice in dimension.choices if choice not in absent]
    if len(absent) != 1 or len(present) != 1 or isinstance(present[0], str):
        raise _refused(f"{name} has the choices {', '.join(map(str, dimension.choices))}")
    return _Model(name, absent[0], present[0])


def _refused(what: str) -> SpecError:
    return SpecError("name", f"greedy_soup includes or excludes each model (weight 0), but {what}", next=EXAMPLE)


@optimizer(
    "greedy_soup",
    population=lambda dimensions: len(dimensions) + 1,
    categoricals=True,
    minibatches=False,
    fits=_check,
)
class GreedySoup:
    """Proposes the start and every model alone, together; then one addition at a time, in the order of their scores.

    The soup is built from the single models; the start is only a reference. An addition that is at least as good is
    kept, one that failed is not, and a model that failed alone is not added. With n models it proposes at most 2n
    candidates, the start included, and then stops. `population` limits how many are proposed together; nothing is
    random.
    """

    def __init__(self, problem: Problem) -> None:
        self._models = [_model(dimension) for dimension in problem.dimensions]
        self._size = problem.population
        alone = [self._genome({index}) for index in range(len(self._models))]
        first = [] if any(same(problem.start, genome) for genome in alone) else [dict(problem.start)]
        self._single: list[tuple[int | None, Genome]] = [*((None, genome) for genome in first), *enumerate(alone)]
        self._asked = 0  # of these
        self._told = 0
        self._pending: Pending[int | None] = Pending()  # with the model that the candidate adds
        self._ranks: dict[int, Rank] = {}  # of models alone
        self._soup: set[int] = set()
        self._rank: Rank | None = None  # the soup's
        self._left: list[int] = []  # models not yet added, best first

    @property
    def population(self) -> int:
        """Number of candidates to propose together next: single models, then one addition at a time."""
        return max(1, min(self._size, len(self._single) - self._asked))

    def ask(self, n: int) -> list[Genome]:
        """Propose the next `n` candidates."""
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Rank the single models, or keep or drop an addition."""
        for observation in observations:
            model = self._pending.take(observation.genome)
            if self._told < len(self._single):
                self._told_alone(model, observation)
            else:
                self._told_added(model, observation)

    def stop_reason(self) -> str | None:
        """Return a reason if every model was tried; it names those that are kept."""
        if self._told < len(self._single) or self._left or len(self._pending):
            return None
        if not self._soup:
            return "greedy_soup: no model could be scored alone"
        kept = ", ".join(self._models[index].name for index in sorted(self._soup))
        return f"greedy_soup: tried every model, {len(self._soup)} of {len(self._models)} kept ({kept})"

    def _ask_one(self) -> Genome:
        if self._asked < len(self._single):
            model, genome = self._single[self._asked]
            self._asked += 1
        else:
            assert not len(self._pending), "an addition must be told before the next is asked"
            assert self._left, "every model was tried"
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
