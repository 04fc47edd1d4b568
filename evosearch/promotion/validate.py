"""Validation of a search's best candidates: rescoring after minibatches, then ranking on `validation`.

If the search scored candidates on minibatches, the best of them are first scored on the full search split, and the
finalists are chosen by these scores: the best of many scores on few items is mostly luck.

Finalists with random masks are also scored with other seeds, for the report (see `mask_seeds`).

All choices are made on `validation`. Recorded steps are not repeated, so an interrupted validation resumes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from evosearch.errors import SearchError
from evosearch.evaluation.types import ItemBatch
from evosearch.promotion.finalists import BASELINE_KINDS, Standing, best, choose, standings
from evosearch.promotion.mask_seeds import MaskSeeds
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Progress
from evosearch.search.protocols import Executor, Job
from evosearch.search.recorder import Recorder, job_id
from evosearch.search.records import FinalistRecord, WinnerRecord, is_candidate

SCALES_TO_VALIDATE = 3  # best scales of the baseline sweep, by score on `search`
RESCORED = 2  # candidates per finalist to score on the full search split after a search on minibatches
PLAIN = ("base", "parent", "stage", "uniform")  # baselines that are scored on the same splits as finalists


@dataclass(kw_only=True)
class Validation:
    """Ranking of a search's best candidates on items that the optimizer never saw.

    Args:
        recorder: Records all results of the search.
        executor: Scores candidates.
        batches: Split → the items that models are compared on.
        finalists: Number of candidates to validate.
        masks: Which finalists are also scored with other seeds.
    """

    recorder: Recorder
    executor: Executor
    batches: Mapping[str, ItemBatch]
    finalists: int = 8
    masks: MaskSeeds = field(default_factory=MaskSeeds)

    def winner(self) -> Standing:
        """Record and return the best of finalists and baselines on validation; the test split stays closed.

        A baseline wins only if it is strictly better: guards first, then score.

        Raises:
            SearchError: No candidate was scored, or no finalist could be validated.
        """
        found = self._better_of(self.finalist())
        self.recorder.record([("winner", self._winner_record(found).to_payload())])
        return found

    def _better_of(self, finalist: str) -> Standing:
        """Return the finalist, or the best baseline if that is strictly better on validation."""
        baseline = best(standings(self.recorder.state), "validation", BASELINE_KINDS)
        found = next(entry for entry in standings(self.recorder.state) if entry.candidate == finalist)
        return baseline if baseline is not None and _rank(baseline) < _rank(found) else found

    def _winner_record(self, found: Standing) -> WinnerRecord:
        recipe = self.recorder.state.recipe(found.candidate)
        return WinnerRecord(found.candidate, found.recipe_id, found.scores["validation"], recipe)

    def finalist(self) -> str:
        """Record all finalists and return the candidate that is best on validation.

        Raises:
            SearchError: No candidate was scored, or no finalist could be validated.
        """
        self._score("search", self._to_rescore(), "rescoring")
        self._score("validation", self._to_validate())
        found = self._choose_finalist()
        self._score_other_seeds()
        return found

    def _to_rescore(self) -> list[str]:
        """List the best candidates with distinct recipes after a search on minibatches.

        Ranks by the reported observations, which rescoring does not change: the list is the same after a resume.
        """
        state = self.recorder.state
        if not state.samples:
            return []
        reported = {name: found for name in state.reported if (found := state.as_reported(name)) is not None}
        first: dict[str, str] = {}  # recipe_id → the first candidate that had it
        for name in state.candidates:
            first.setdefault(state.recipe_ids[name], name)
        ranked = sorted(reported, key=lambda name: (reported[name][0], -reported[name][1], int(name)))
        chosen = dict.fromkeys(first[state.recipe_ids[name]] for name in ranked)
        return list(chosen)[: RESCORED * self.finalists]

    def _to_validate(self) -> list[str]:
        """List finalists, base, parents, earlier stages' winners, uniform average, and the sweep's best scales."""
        entries = standings(self.recorder.state)
        chosen = [entry.candidate for entry in choose(entries, self.finalists)]
        if not any(is_candidate(name) for name in chosen):
            raise SearchError("no candidate could be scored, so there is no finalist")
        plain = [entry.candidate for entry in entries if entry.kind in PLAIN]
        scales = sorted(
            (entry for entry in entries if entry.kind == "scale"),
            key=lambda entry: (entry.violation.get("search", 0.0), -entry.scores.get("search", 0.0)),
        )
        return list(dict.fromkeys([*chosen, *plain, *(entry.candidate for entry in scales[:SCALES_TO_VALIDATE])]))

    def _choose_finalist(self) -> str:
        """Record all finalists by rank on validation and return the first: broken guards, then score."""
        entries = standings(self.recorder.state)
        chosen = {entry.candidate for entry in choose(entries, self.finalists)}
        ranked = sorted(
            (e for e in entries if e.candidate in chosen and e.kind == "candidate" and "validation" in e.scores),
            key=lambda entry: (entry.violation["validation"], -entry.scores["validation"], int(entry.candidate)),
        )
        if not ranked:
            raise SearchError("no finalist could be scored on validation")
        recorded = [finalist.candidate for finalist in self.recorder.state.finalists]
        if recorded != [entry.candidate for entry in ranked]:
            self.recorder.record(
                [
                    ("finalist", FinalistRecord(entry.candidate, rank, entry.scores["validation"]).to_payload())
                    for rank, entry in enumerate(ranked, start=1)
                ]
            )
        return ranked[0].candidate

    def _score_other_seeds(self) -> None:
        """Record finalists with other seeds of their masks, and score them on validation."""
        state = self.recorder.state
        found = [one for each in state.finalists for one in self.masks.of(each.candidate, state.recipe(each.candidate))]
        new = [("reseeded", one.to_payload()) for one in found if one.candidate not in state.reseeded]
        if new:
            self.recorder.record(new)
        self._score("validation", [one.candidate for one in found], "mask seeds")

    def _score(self, split: str, names: list[str], stage: str = "", executor: Executor | None = None) -> None:
        """Score the models that have no score yet on all items of a split, on another executor if one is given."""
        if not names:
            return
        state, batch = self.recorder.state, self.batches[split]
        todo = [name for name in names if (name, split) not in state.done]
        jobs = [Job(job_id(name, split), self._recipe(name), batch) for name in todo]
        total = len(names)
        self.recorder.run(
            executor or self.executor, jobs, lambda left: Progress(stage or split, total - left, total, state.best())
        )

    def _recipe(self, name: str) -> Recipe:
        return Recipe.model_validate(self.recorder.state.recipe(name))


def _rank(entry: Standing) -> tuple[float, float]:
    return entry.violation["validation"], -entry.scores["validation"]
