"""Promotion of a search's best candidate: finalists on `validation` (see `validate`), the gate on `test`.

All choices are made on `validation`. `test` is opened once, for a fixed list of contenders, and the opening is recorded
before the first item is scored. Recorded steps are not repeated, so an interrupted promotion resumes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from evosearch.errors import SearchError
from evosearch.evaluation.types import Column, ItemBatch
from evosearch.promotion.finalists import BASELINE_KINDS, best, kind_of, standings
from evosearch.promotion.gate import Contender, GateDecision, Measure, Role, decide
from evosearch.promotion.honest import PLACEBO, TRAINED, Honest, PlaceboWinner, items_used, trained_record
from evosearch.promotion.non_inferiority import GuardedTask
from evosearch.promotion.validate import PLAIN, Validation
from evosearch.recipe.schema import Recipe
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Progress
from evosearch.search.protocols import Job, Training
from evosearch.search.recorder import job_id
from evosearch.search.records import BaselineRecord, OpeningRecord
from evosearch.search.state import SearchState

CHAMPION = "champion"
ROLES: dict[str, Role] = {"base": "base", "parent": "parent", "stage": "baseline", "champion": "champion"}


@dataclass(frozen=True)
class Champion:
    """The model that the alias `champion` points to."""

    recipe: Recipe
    recipe_id: str


def scored_champion(state: SearchState, name: str) -> str | None:
    """Return the recipe_id of the champion that has a score card on test under a name; None without one."""
    card = state.cards.get((name, "test"))
    return card.recipe_id if card is not None else None


@dataclass(kw_only=True)
class Promotion(Validation):
    """Validation and the gate: the final phase of a search.

    Args:
        search_split: All items of the search split, for fine-tuning.
        openings: Ledger that counts how often each test set was opened, by all searches.
        metrics: Task → column of the suite's metric, including guarded tasks.
        measure: Score definition and bounds of the gate.
        champion: The current champion; None if there is none or it cannot be compared.
        chances: Guarded task → its chance level.
        notes: Conditions to record with the decision.
        honest: Honest baselines to make and to open `test` for. With a placebo, `executor` is closed while its search
            runs, and used again.
    """

    search_split: ItemBatch
    openings: Ledger
    metrics: Mapping[str, str]
    measure: Measure
    champion: Champion | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    honest: Honest = field(default_factory=Honest)
    _champion_name: str = field(default=CHAMPION, init=False)

    def __post_init__(self) -> None:
        """Name the champion: one that follows another, which was scored already, has its recipe_id in its name."""
        if self.champion is None:
            return
        state, own = self.recorder.state, self.champion.recipe_id
        if (CHAMPION, "test") in state.done and scored_champion(state, CHAMPION) != own:
            self._champion_name = f"{CHAMPION}:{own[:12]}"
        state.recipe_ids[self._champion_name] = own  # its score card gets it, which no other event has

    def run(self) -> GateDecision:
        """Validate, open the test split, decide, and record the decision.

        Raises:
            SearchError: No candidate was scored, or a contender failed on a split.
        """
        finalist = self.finalist()
        placebo = self._find_placebo()
        trained = self._plan_training()
        contenders = self._test_list(finalist)
        honest = [*([placebo.name] if placebo else []), *([trained] if trained else [])]
        self._open_test([*contenders, *honest])
        if placebo is not None:
            self._score_placebo(placebo)
        self._score("test", contenders)
        if trained is not None:
            self._train(trained)
        decision = replace(self._decide(finalist), notes=tuple(self.notes))
        self.recorder.record([("gated", decision.to_dict())])
        return decision

    def _find_placebo(self) -> PlaceboWinner | None:
        """Run the placebo search and record its winner as a baseline of this search."""
        if self.honest.placebo is None:
            return None
        self.executor.close()  # its models make room for those of the placebo search
        found = self.honest.placebo()
        self._record_baseline(found.record())
        return found

    def _score_placebo(self, placebo: PlaceboWinner) -> None:
        """Score the placebo's winner with its own models, on the splits of the finalists."""
        executor = placebo.executor()
        try:
            for split in ("validation", "test"):
                self._score(split, [placebo.name], executor=executor)
        finally:
            executor.close()

    def _plan_training(self) -> str | None:
        """Record the baseline to be trained; return its name, or None without one."""
        if not self.honest.trained:
            return None
        state = self.recorder.state
        planned = trained_record(state, items_used(state) + self.honest.earlier_items, self.honest.seed)
        self._record_baseline(planned)
        if planned.skipped is not None:
            self.notes.append(f"nothing was fine-tuned: {planned.skipped}")
            return None
        return planned.candidate

    def _train(self, name: str) -> None:
        """Fine-tune and score a baseline, unless that was done, or failed."""
        state, split = self.recorder.state, "search"
        if (name, "test") not in state.cards and (name, split) not in state.done:
            items = int(name.partition(":")[2])
            training = Training(items, self.honest.seed, tuple(self.batches[one] for one in ("validation", "test")))
            job = Job(job_id(name, split), self._recipe(name), self.search_split, training=training)
            self.recorder.run(self.executor, [job], lambda left: Progress("training", 1 - left, 1, state.best()))
        if (name, "test") not in state.cards:
            self.notes.append(f"fine-tuning failed: {self._failure_of(name)}")

    def _record_baseline(self, record: BaselineRecord) -> None:
        known = self.recorder.state.baselines.get(record.candidate)
        if known is None or known.recipe_id != record.recipe_id:
            self.recorder.record([("baseline", record.to_payload())])

    def _failure_of(self, name: str) -> str:
        return next((f.reason for f in self.recorder.state.failed if f.candidate == name), "it was not scored")

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
        return [*names, self._champion_name] if self.champion else names

    def _open_test(self, contenders: list[str]) -> None:
        """Record the opening, in this search and in the count that all searches share, before anything is scored."""
        recorder, digest = self.recorder, self.batches["test"].documents_digest
        openings = recorder.state.test_openings
        if openings and openings[-1].candidates == contenders and openings[-1].digest == digest:
            return
        count = self.openings.record_test_opening(recorder.search_id, digest, contenders)
        recorder.record([("test_opened", OpeningRecord(digest, contenders, count).to_payload())])

    def _recipe(self, name: str) -> Recipe:
        if kind_of(name) == CHAMPION:
            assert self.champion is not None
            return self.champion.recipe
        return super()._recipe(name)

    def _decide(self, finalist: str) -> GateDecision:
        state = self.recorder.state
        comparators = [self._contender(name, role) for name, role in self._roles().items() if name != finalist]
        trained = state.latest(TRAINED) if self.honest.trained else None
        beside = self._contender(trained, "trained") if trained and (trained, "test") in state.cards else None
        return decide(self._contender(finalist, "finalist"), comparators, self.measure, self._guards(), beside)

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
        placebo = self.recorder.state.latest(PLACEBO) if self.honest.placebo is not None else None
        if placebo is not None:
            roles[placebo] = "placebo"
        if self.champion is not None:
            roles[self._champion_name] = "champion"
        return roles

    def _contender(self, name: str, role: Role) -> Contender:
        """Load a contender's item scores on test; the gate needs every contender."""
        state = self.recorder.state
        if (name, "test") not in state.cards:
            raise SearchError(f"the gate needs {kind_of(name)} {name} on the test split, but {self._failure_of(name)}")
        stored = self.recorder.ledger.columns(self.recorder.search_id, name, "test")
        columns: dict[str, Column] = {task: stored[task][metric] for task, metric in self.metrics.items()}
        recipe_id = self.champion.recipe_id if role == CHAMPION and self.champion else state.recipe_ids.get(name, "")
        title = state.title(CHAMPION if role == CHAMPION else name)
        return Contender(name, role, columns, recipe_id, state.cards[name, "test"].sets, title)
