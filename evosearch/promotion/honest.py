"""Honest baselines: what the same effort gives without a merge search, or without the models' task vectors.

| kind | model |
|---|---|
| trained | the best single scale's merge, fine-tuned on the search documents with the search's item evaluations |
| placebo | the winner of the same search over random task vectors with the norms of the models' own |

Both are made after the search. The gate requires that the winner beats the placebo. The fine-tuned model is only shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evosearch.promotion.finalists import best, standings
from evosearch.recipe.identity import digest
from evosearch.search.protocols import Executor
from evosearch.search.records import BaselineRecord, CandidateRecord
from evosearch.search.state import SearchState

TRAINED, PLACEBO = "trained", "placebo"  # kinds
TRAINED_CHECKPOINTS = 3  # scorings on validation during a fine-tuning; see `evaluation.harness.fine_tuning`
GRADIENT = 3  # item evaluations that a gradient counts as, for each item


@dataclass(frozen=True)
class PlaceboWinner:
    """The winner of a placebo search.

    Attributes:
        candidate: Its name there.
        recipe: Its recipe as plain data.
        recipe_id: See `recipe.identity`.
        recipes: Reference → recipe, of the winners of earlier stages that it is made of.
        executor: Makes an executor whose workers have its models.
    """

    candidate: str
    recipe: Mapping[str, Any]
    recipe_id: str
    recipes: Mapping[str, Mapping[str, Any]]
    executor: Callable[[], Executor]

    @property
    def name(self) -> str:
        """Its name as a baseline of the real search."""
        return f"{PLACEBO}:{self.candidate}"

    def record(self) -> BaselineRecord:
        """Return the baseline of the real search."""
        within = {reference: dict(recipe) for reference, recipe in self.recipes.items()}
        return BaselineRecord(self.name, PLACEBO, dict(self.recipe), self.recipe_id, recipes=within)


@dataclass(frozen=True)
class Honest:
    """Honest baselines to add to a search.

    Attributes:
        trained: Whether to fine-tune.
        seed: Seed of the fine-tuning.
        earlier_items: Item evaluations of earlier stages, which the fine-tuning may use too.
        placebo: Runs the placebo search; None: there is no such baseline.
    """

    trained: bool = False
    seed: int = 0
    earlier_items: int = 0
    placebo: Callable[[], PlaceboWinner] | None = field(default=None, compare=False)


def trained_record(state: SearchState, items: int, seed: int) -> BaselineRecord:
    """Return the baseline that starts from the best single scale by score on validation."""
    start = best(standings(state), "validation", ("scale",))
    name = f"{TRAINED}:{items}"
    if start is None:
        return BaselineRecord(name, TRAINED, skipped="no single scale could be scored on validation")
    identity = digest({"trained": start.recipe_id, "items": items, "seed": seed})
    return BaselineRecord(name, TRAINED, state.recipe(start.candidate), identity)


def items_used(state: SearchState) -> int:
    """Return the item evaluations of all candidates; answers, duplicates and failures took none."""
    return sum(_items_of(state, candidate) for candidate in state.candidates.values())


def _items_of(state: SearchState, candidate: CandidateRecord) -> int:
    name, minibatch = candidate.candidate, candidate.minibatch
    if state.is_answer(name) or candidate.duplicate_of is not None:
        return 0
    if candidate.gradient:
        found = state.gradients.get((name, minibatch or 0))
        return GRADIENT * found.fitness.n if found else 0
    card = state.cards.get((name, "search")) if minibatch is None else state.samples.get((name, minibatch))
    return card.items if card else 0
