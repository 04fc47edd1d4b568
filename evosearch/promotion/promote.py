"""From the search's best to a promoted winner: finalists on `validation` (see `validate`), the gate on `test`.

Everything that is chosen is chosen on `validation`; `test` is opened once, for a fixed list, and the opening is on
record before the first question is asked. What is recorded is not done again, so this, too, goes on after a kill.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evosearch.errors import SearchError
from evosearch.evaluation.types import Column
from evosearch.promotion.finalists import BASELINE_KINDS, best, kind_of
from evosearch.promotion.gate import Contender, GateDecision, Measure, Role, decide
from evosearch.promotion.guards import Guarded
from evosearch.promotion.validate import PLAIN, Validation
from evosearch.recipe.schema import Recipe
from evosearch.search.ledger.ledger import Ledger

CHAMPION = "champion"
ROLES: dict[str, Role] = {"base": "base", "parent": "parent", "stage": "baseline", "champion": "champion"}


@dataclass(frozen=True)
class Champion:
    """The model that holds the alias `champion` now."""

    recipe: Recipe
    recipe_id: str


@dataclass(kw_only=True)
class Promotion(Validation):
    """The last part of a search.

    Args:
        openings: the ledger that counts how often a test set was opened, by all searches.
        metrics: task → the column of the suite's metric, guarded tasks too.
        chances: guarded task → its chance level.
        champion: the present champion, where there is one that can be compared.
    """

    openings: Ledger
    metrics: Mapping[str, str]
    measure: Measure
    champion: Champion | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self) -> GateDecision:
        """Validate, open the test, decide, and record the decision.

        Raises:
            SearchError: no candidate was scored, or a contender fails on a split.
        """
        finalist = self.finalist()
        contenders = self._test_list(finalist)
        self._open_test(contenders)
        self._score("test", contenders)
        decision = self._decide(finalist)
        self.recorder.record([("gated", decision.to_dict() | {"finalist": finalist, "notes": list(self.notes)})])
        return decision

    def _best_baseline(self) -> str | None:
        baseline = best(self._standings(), "validation", BASELINE_KINDS)
        return baseline.candidate if baseline else None

    def _test_list(self, finalist: str) -> list[str]:
        """Finalist, base, parents, winners of earlier stages, uniform and the best scale, champion.

        One of the middle three is the best baseline.
        """
        entries = self._standings()
        names = [finalist, *(entry.candidate for entry in entries if entry.kind in PLAIN)]
        scale = best(entries, "validation", ("scale",))
        names += [scale.candidate] if scale else []
        return [*names, CHAMPION] if self.champion else names

    def _open_test(self, contenders: list[str]) -> None:
        """Put the opening on record, and in the count that all searches share, before anything is scored."""
        recorder, test = self.recorder, self.batches["test"]
        digest = test.digest
        openings = recorder.state.test_openings
        if openings and openings[-1]["candidates"] == contenders and openings[-1]["digest"] == digest:
            return
        count = self.openings.record_test_opening(
            recorder.search_id, test.documents_digest, contenders, known_as=[digest]
        )
        recorder.record([("test_opened", {"digest": digest, "candidates": contenders, "count": count})])

    def _recipe(self, name: str) -> Recipe:
        if name == CHAMPION:
            assert self.champion is not None
            return self.champion.recipe
        return super()._recipe(name)

    def _decide(self, finalist: str) -> GateDecision:
        comparators = [self._contender(name, role) for name, role in self._roles().items() if name != finalist]
        return decide(self._contender(finalist, "finalist"), comparators, self.measure, self._guards())

    def _guards(self) -> list[Guarded]:
        """Every guarded task with its reference's items on test; references were chosen on the search split."""
        state = self.recorder.state
        return [
            Guarded(
                task,
                state.limits[task],
                self.chances[task],
                name,
                self._contender(name, ROLES[kind_of(name)]).columns[task],
            )
            for task, name in state.references().items()
        ]

    def _roles(self) -> dict[str, Role]:
        entries = [entry for entry in self._standings() if "test" in entry.scores or entry.kind in ("base", "parent")]
        roles: dict[str, Role] = {
            entry.candidate: ROLES[entry.kind] for entry in entries if entry.kind in ("base", "parent")
        }
        baseline = self._best_baseline()
        if baseline is not None:
            roles[baseline] = "baseline"
        if self.champion is not None:
            roles[CHAMPION] = "champion"
        return roles

    def _contender(self, name: str, role: Role) -> Contender:
        """A contender with its item scores on test; the gate needs every one of them."""
        state = self.recorder.state
        if (name, "test") not in state.cards:
            reason = next((f["reason"] for f in state.failed if f["candidate"] == name), "it was not scored")
            raise SearchError(f"the gate needs {kind_of(name)} {name} on the test split, but {reason}")
        stored = self.recorder.ledger.columns(self.recorder.search_id, name, "test")
        columns: dict[str, Column] = {task: stored[task][metric] for task, metric in self.metrics.items()}
        recipe_id = self.champion.recipe_id if name == CHAMPION and self.champion else state.recipe_ids.get(name, "")
        card: dict[str, Any] = state.cards[name, "test"]
        return Contender(name, role, columns, recipe_id, card["sets"])
