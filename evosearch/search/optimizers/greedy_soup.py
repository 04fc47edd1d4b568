"""Greedy soup: models are added, best first, as long as the score does not fall.

Wortsman et al. 2022, arXiv:2203.05482, recipe 1:

    soup ← {}; for each model in the order of its own score: keep it if score(soup + model) ≥ score(soup)

Made for `linear` with weights of 0 or one fixed number, which averages the models that are included. Under
`task_arithmetic` it sums task vectors instead: each added model moves the soup further from the base.
"""

from collections.abc import Sequence
from functools import partial

from evosearch.search.optimizer import Problem
from evosearch.search.optimizers._soups import Rank, check, genome_of, model_of, rank_of
from evosearch.search.optimizers.registry import optimizer
from evosearch.search.pending import Pending, same
from evosearch.search.space.dimensions import Genome, Observation


@optimizer(
    "greedy_soup",
    population=lambda dimensions: len(dimensions) + 1,
    categoricals=True,
    minibatches=False,
    fits=partial(check, "greedy_soup"),
)
class GreedySoup:
    """Proposes the start and every model alone, together; then one addition at a time, in the order of their scores.

    The soup is built from the single models; the start is only a reference. An addition that is at least as good is
    kept, one that failed is not, and a model that failed alone is not added. With n models it proposes at most 2n
    candidates, the start included, and then stops. `population` limits how many are proposed together; nothing is
    random.
    """

    def __init__(self, problem: Problem) -> None:
        self._models = [model_of("greedy_soup", dimension) for dimension in problem.dimensions]
        self._size = problem.population
        alone = [genome_of(self._models, {index}) for index in range(len(self._models))]
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
            genome = genome_of(self._models, self._soup | {model})
        self._pending.add(genome, model)
        return dict(genome)

    def _told_alone(self, model: int | None, observation: Observation) -> None:
        self._told += 1
        rank = rank_of(observation)
        if model is not None and rank is not None:
            self._ranks[model] = rank
        if self._told == len(self._single) and self._ranks:
            best, *self._left = sorted(self._ranks, key=lambda index: self._ranks[index], reverse=True)
            self._soup, self._rank = {best}, self._ranks[best]

    def _told_added(self, model: int | None, observation: Observation) -> None:
        added, rank = self._left.pop(0), rank_of(observation)
        assert model == added
        if rank is not None and (self._rank is None or rank >= self._rank):
            self._soup.add(added)
            self._rank = rank
