"""Promotion of a search's best candidate: finalists on `validation` (see `validate`), the gate on `test`.

All choices are made on `validation`. `test` is opened once, for a fixed list of contenders, and the opening is recorded
before the first item is scored. Recorded steps are not repeated, so an interrupted promotion resumes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from evosearch.errors import SearchError
from evosearch.evaluation.types import Column
from evosearch.promotion.finalists import BASELINE_KINDS, best, kind_of, standings
from evosearch.promotion.gate import Contender, GateDecision, Measure, Role, decide
from evosearch.promotion.non_inferiority import GuardedTask
from evosearch.promotion.validate import PLAIN, Validation
from evosearch.recipe.schema import Recipe
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.records import OpeningRecord

CHAMPION = "champion"
ROLES: dict[str, Role] = {"base": "base", "parent": "parent", "stage": "baseline", "champion": "champion"}


@dataclass(frozen=True)
class Champion:
    """The model that the alias `champion` points to."""

    recipe: Recipe
    recipe_id: str


@dataclass(kw_only=True)
class Promotion(Validation):
    """Validation and the gate: the final phase of a search.

    Args:
        openings: Ledger that counts how often each test set was opened, by all searches.
        metrics: Task → column of the suite's metric, including guarded tasks.
        measure: Score definition and bounds of the gate.
        champion: The current champion; None if there is none or it cannot be compared.
        chances: Guarded task → its chance level.
        notes: Conditions to record with the decision.
    """

    openings: Ledger
    metrics: Mapping[str, str]
    measure: Measure
    champion: Champion | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self) -> GateDecision:
        """Validate, open the test split, decide, and record the decision.

        Raises:
            SearchError: No candidate was scored, or a contender failed on a split.
        """
        finalist = self.finalist()
        contenders = self._test_list(finalist)
        self._open_test(contenders)
        self._score("test", contenders)
        decision = replace(self._decide(finalist), notes=tuple(self.notes))
        self.recorder.record([("gated", decision.to_dict())])
        return decision

    def _best_baseline(self) -> str | None:
        baseline = best(standings(self.recorder.state), "validation", BASELINE_KINDS)
        return baseline.candidate if baseline else None

    def _test_list(self, finalist: str) -> list[str]:
        """List finalist, base, parents, earlier stages' winners, uniform average, best scale and champion.

        The best baseline is a stage's winner, the uniform average or the best scale.
        """
        entries = standings(self.recorder.state)
        names = [finalist, *(entry.candidate for entry in entries if entry.kind in PLAIN)]
        scale = best(entries, "validation", ("scale",))
        names += [scale.candidate] if scale else []
        return [*names, CHAMPION] if self.champion else names

    def _open_test(self, contenders: list[str]) -> None:
        """Record the opening, in this search and in the count that all searches share, before anything is scored."""
        recorder, digest = self.recorder, self.batches["test"].documents_digest
        openings = recorder.state.test_openings
        if openings and openings[-1].candidates == contenders and openings[-1].digest == digest:
            return
        count = self.openings.record_test_opening(recorder.search_id, digest, contenders)
        recorder.record([("test_opened", OpeningRecord(digest, contenders, count).to_payload())])

    def _recipe(self, name: str) -> Recipe:
        if name == CHAMPION:
            assert self.champion is not None
            return self.champion.recipe
        return super()._recipe(name)

    def _decide(self, finalist: str) -> GateDecision:
        comparators = [self._contender(name, role) for name, role in self._roles().items() if name != finalist]
        return decide(self._contender(finalist, "finalist"), comparators, self.measure, self._guards())

    def _guards(self) -> list[GuardedTask]:
        """Pair every guarded task with its reference's test scores; references were chosen on the search split."""
        state = self.recorder.state
        return [
            GuardedTask(
                task=task,
                max_drop=state.limits[task],
                chance=self.chances[task],
                reference=name,
                column=self._contender(name, ROLES[kind_of(name)]).columns[task],
            )
            for task, name in state.references().items()
        ]

    def _roles(self) -> dict[str, Role]:
        entries = standings(self.recorder.state)
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
        """Load a contender's item scores on test; the gate needs every contender."""
        state = self.recorder.state
        if (name, "test") not in state.cards:
            reason = next((f.reason for f in state.failed if f.candidate == name), "it was not scored")
            raise SearchError(f"the gate needs {kind_of(name)} {name} on the test split, but {reason}")
        stored = self.recorder.ledger.columns(self.recorder.search_id, name, "test")
        columns: dict[str, Column] = {task: stored[task][metric] for task, metric in self.metrics.items()}
        recipe_id = self.champion.recipe_id if name == CHAMPION and self.champion else state.recipe_ids.get(name, "")
        return Contender(name, role, columns, recipe_id, state.cards[name, "test"].sets)
