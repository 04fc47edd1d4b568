"""Soup by threshold: one merge of all models whose own score is high enough.

Wortsman et al. 2022, arXiv:2203.05482, average all models (the uniform soup); poor ones are left out here by their own
score on the search split:

    soup = {models with score ≥ threshold and score ≥ best − within}

Made for `linear` with weights of 0 or one fixed number, like `greedy_soup`, which takes more candidates and selects by
the score of the soup.
"""

from collections.abc import Sequence

from evosearch.search.optimizer import Problem
from evosearch.search.optimizers._soups import check, genome_of, model_of
from evosearch.search.optimizers.registry import Option, optimizer
from evosearch.search.pending import Pending, same
from evosearch.search.space.dimensions import Genome, Observation


@optimizer(
    "soup",
    population=lambda dimensions: len(dimensions) + 1,
    options={
        "within": Option(float, 2.0, "How far below the best model, in fitness, a model may be.", ge=0, le=1e6),
        "threshold": Option(float, -1e6, "Least fitness of a model; the default excludes none.", ge=-1e6, le=1e6),
    },
    categoricals=True,
    minibatches=False,
    fits=lambda dimensions, **_: check("soup", dimensions),
)
class Soup:
    """Proposes the start and every model alone, together; then the soup of those that are good enough.

    The start is only a reference. A model that failed, or that breaks more constraints than the best one, is left out.
    With n models it proposes at most n + 2 candidates, the start included, and then stops; a soup of fewer than two
    models is not proposed. `population` limits how many are proposed together; nothing is random.
    """

    def __init__(self, problem: Problem, *, within: float, threshold: float) -> None:
        self._models = [model_of("soup", dimension) for dimension in problem.dimensions]
        self._within, self._threshold = within, threshold
        self._size = problem.population
        alone = [genome_of(self._models, {index}) for index in range(len(self._models))]
        first = [] if any(same(problem.start, genome) for genome in alone) else [dict(problem.start)]
        self._left: list[tuple[int | None, Genome]] = [*((None, genome) for genome in first), *enumerate(alone)]
        self._untold = len(self._left)
        self._pending: Pending[int | None] = Pending()  # with the model that the candidate has alone
        self._alone: dict[int, Observation] = {}
        self._soup: list[int] | None = None  # the chosen models, once all are scored

    @property
    def population(self) -> int:
        """Number of candidates to propose together next: the models, then the soup."""
        return max(1, min(self._size, len(self._left)))

    def ask(self, n: int) -> list[Genome]:
        """Propose the next `n` candidates."""
        asked, self._left = self._left[:n], self._left[n:]
        assert len(asked) == n, "nothing is left to ask, or the models must be told first"
        for model, genome in asked:
            self._pending.add(genome, model)
        return [dict(genome) for _, genome in asked]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Record the models' own results; after the last one, choose the soup."""
        for observation in observations:
            model = self._pending.take(observation.genome)
            if model is not None and observation.value is not None:
                self._alone[model] = observation
            self._untold -= 1
        if not self._untold and self._soup is None:
            self._soup = self._chosen()
            if len(self._soup) > 1:
                self._left, self._untold = [(None, genome_of(self._models, self._soup))], 1

    def stop_reason(self) -> str | None:
        """Return a reason if the soup was tried; it names the models in it."""
        if self._soup is None or self._left or len(self._pending):
            return None
        if not self._alone:
            return "soup: no model could be scored alone"
        names = ", ".join(self._models[index].name for index in self._soup) or "none"
        return f"soup: {len(self._soup)} of {len(self._models)} models are good enough ({names})"

    def _chosen(self) -> list[int]:
        if not self._alone:
            return []
        violation = min(one.violation for one in self._alone.values())
        scored = {index: one for index, one in self._alone.items() if one.violation <= violation}
        values = {index: one.value for index, one in scored.items() if one.value is not None}
        least = max(self._threshold, max(values.values()) - self._within)
        return sorted(index for index, value in values.items() if value >= least)
