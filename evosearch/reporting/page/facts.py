"""Facts for the sections of a page: a recorded search, its leaderboard, and the names of its models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evosearch.evaluation.statistics.units import Groups
from evosearch.evaluation.types import Column
from evosearch.promotion.gate import GateDecision
from evosearch.recipe.schema import Recipe
from evosearch.reporting.leaderboard import Leaderboard, leaderboard_of
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.records import CardSummary, is_candidate
from evosearch.search.space.labels import labels
from evosearch.search.state import SearchState
from evosearch.search.titles import dimension_title
from evosearch.setup.loading import groups_of, metric_columns

ORDER = ("base", "parent", "stage", "uniform", "scale", "trained", "placebo", "champion")  # of comparators


@dataclass(frozen=True)
class Facts:
    """A recorded search.

    Attributes:
        ledger: The ledger that it is read from.
        search_id: Its id.
        events: Its events.
        state: The same, folded.
    """

    ledger: Ledger
    search_id: str
    events: Sequence[Event]
    state: SearchState

    @classmethod
    def read(cls, ledger: Ledger, search_id: str) -> "Facts":
        """Read a search.

        Raises:
            LedgerError: The ledger is damaged, or another version's.
        """
        events = ledger.events(search_id)
        return cls(ledger, search_id, events, SearchState.from_events(events))

    @cached_property
    def board(self) -> Leaderboard:
        """The leaderboard."""
        return leaderboard_of(self.ledger, self.search_id, self.state)

    @cached_property
    def decision(self) -> GateDecision | None:
        """The gate's last decision."""
        return GateDecision.from_dict(self.state.gated.decision) if self.state.gated else None

    @cached_property
    def subject(self) -> str | None:
        """The model that the page is about: judged last by the gate, a stage's winner, or leading so far."""
        if self.decision is not None:
            return self.decision.winner
        if self.state.winner is not None:
            return self.state.winner.candidate
        rows = [row for row in self.board.rows if row.kind == "candidate" and row.fitness is not None]
        return rows[0].candidate if rows else None

    @cached_property
    def split(self) -> str:
        """The last split that the subject was scored on: what it is judged by."""
        name = "" if self.subject is None else self.state.original(self.subject)
        return next((split for split in ("test", "validation") if (name, split) in self.state.cards), "search")

    @cached_property
    def searched(self) -> str | None:
        """The candidate whose numbers are shown: the subject, or the finalist that a baseline took the place of."""
        named = [self.subject, self.decision.finalist if self.decision is not None else None]
        named += [row.candidate for row in self.board.rows if row.kind == "candidate" and row.fitness is not None]
        return next((name for name in named if name is not None and name in self.state.candidates), self.subject)

    @cached_property
    def searched_recipe(self) -> Recipe | None:
        """The recipe of that candidate."""
        return None if self.searched is None else Recipe.model_validate(self.state.recipe(self.searched))

    @cached_property
    def recipe(self) -> Recipe | None:
        """The subject's recipe."""
        return None if self.subject is None else Recipe.model_validate(self.state.recipe(self.subject))

    @property
    def measure(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Task → weight, and task → chance level, of the score."""
        suite: Mapping[str, Any] = self.state.spec.get("suite") or {}
        return suite.get("weights") or {}, suite.get("chances") or {}

    def card(self, name: str, split: str) -> CardSummary | None:
        """Return the score card of a model on a full split."""
        return self.state.cards.get((self.state.original(name), split))

    def columns(self, name: str, split: str) -> dict[str, Column]:
        """Return task → (items,) the suite's metric; empty where no right answers were read."""
        card = self.card(name, split)
        if card is None or card.score is None:
            return {}
        return metric_columns(self.ledger, self.search_id, self.state, self.state.original(name), split)

    def groups(self, name: str, split: str) -> Groups:
        """Return task → group of each item, for tasks with groups."""
        return groups_of(self.ledger, self.state, self.state.original(name), split)

    def comparators(self, split: str) -> list[str]:
        """Return the baselines with a score on a split, base and parents first; of the scales only the best."""
        names = {name for name, where in self.state.cards if where == split and not is_candidate(name)}
        names = {name for name in names if _kind(name) in ORDER and name != self.subject}
        scales = [name for name in names if _kind(name) == "scale"]
        best = max(scales, key=lambda name: self.state.cards[name, split].merit, default=None)
        kept = [name for name in names if _kind(name) != "scale" or name == best]
        return sorted(kept, key=lambda name: (ORDER.index(_kind(name)), name))

    def label(self, name: str) -> str:
        """Return a model's title: `#41`, `parent sort`, `scale 0.5`."""
        return self.state.title(name)

    def dimension(self, name: str) -> str:
        """Return the title of a dimension: `sort.weight[layer 3]`."""
        recipe = self.searched_recipe
        return name if recipe is None else dimension_title(name, recipe.model_dump(mode="json"))

    def short(self, reference: str) -> str:
        """Return the label of a model."""
        return labels(tuple(dict.fromkeys([*self.state.inputs, reference])))[reference]


def _kind(name: str) -> str:
    return name.partition(":")[0]
