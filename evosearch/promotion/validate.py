"""From the search's best to one finalist: rescored where the search scored on minibatches, then ranked on `validation`.

Where the search scored candidates on minibatches of its split, the best of them are first scored on all of it, and finalists
are chosen by that: the best of many figures from few items is mostly luck.

Everything that is chosen is chosen on `validation`. What is recorded is not done again, so this goes on after a kill.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from evosearch.errors import SearchError
from evosearch.evaluation.types import ItemBatch
from evosearch.promotion.finalists import BASELINE_KINDS, Standing, best, choose, standings
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Progress
from evosearch.search.protocols import Executor, Job
from evosearch.search.recorder import Recorder, job_id

SCALES_TO_VALIDATE = 3  # of the baseline sweep, the best by score on `search`
RESCORED = 2  # candidates scored on all of `search` for each finalist, where the search scored on minibatches
PLAIN = ("base", "parent", "stage", "uniform")  # baselines that are scored wherever finalists are


@dataclass(kw_only=True)
class Validation:
    """What a search has found, judged on questions that it was not told of.

    Args:
        batches: the items of each split.
        finalists: how many candidates go to validation.
    """

    recorder: Recorder
    executor: Executor
    batches: Mapping[str, ItemBatch]
    finalists: int = 8

    def winner(self) -> Standing:
        """The best on validation of finalists and baselines, on record; the test split stays closed.

        A baseline wins only where it is strictly better: guards first, then score.

        Raises:
            SearchError: no candidate was scored, or no finalist could be validated.
        """
        finalist = self.finalist()
        baseline = best(self._standings(), "validation", BASELINE_KINDS)
        found = next(entry for entry in self._standings() if entry.candidate == finalist)
        if baseline is not None and _rank(baseline) < _rank(found):
            found = baseline
        self.recorder.record([("winner", self._winner_payload(found))])
        return found

    def _winner_payload(self, found: Standing) -> dict[str, object]:
        payload = {"candidate": found.candidate, "recipe_id": found.recipe_id, "score": found.scores["validation"]}
        return payload | {"recipe": self.recorder.state.recipe(found.candidate)}

    def finalist(self) -> str:
        """The candidate that is best on validation; all finalists are recorded.

        Raises:
            SearchError: no candidate was scored, or no finalist could be validated.
        """
        self._score("search", self._to_rescore(), "rescoring")
        self._score("validation", self._to_validate())
        return self._choose_finalist()

    def _standings(self) -> list[Standing]:
        """Baselines in their own order, then candidates as they were asked: not as workers happened to finish."""
        state = self.recorder.state
        order = {name: index for index, name in enumerate([*state.baselines, *state.asked])}
        found = standings(self.recorder.ledger.events(self.recorder.search_id))
        found = [
            replace(entry, broken={split: state.violation(entry.candidate, split) for split in entry.scores})
            for entry in found
        ]
        return sorted(found, key=lambda entry: order.get(entry.candidate, len(order)))

    def _to_rescore(self) -> list[str]:
        """Of a search on minibatches, the best candidates with distinct recipes, by what the optimizer was told.

        Only what was told counts, which scoring them does not change: after a kill the list is the same.
        """
        state = self.recorder.state
        if not state.samples:
            return []
        told = {name: found for name in state.told if (found := state.as_told(name)) is not None}
        first: dict[str, str] = {}  # recipe_id → the first candidate that had it
        for name in state.asked:
            first.setdefault(state.recipe_ids[name], name)
        ranked = sorted(told, key=lambda name: (told[name][0], -told[name][1], int(name)))
        chosen = dict.fromkeys(first[state.recipe_ids[name]] for name in ranked)
        return list(chosen)[: RESCORED * self.finalists]

    def _to_validate(self) -> list[str]:
        """Finalists, base, parents, winners of earlier stages, uniform, and the best scales of the sweep."""
        entries = self._standings()
        chosen = [entry.candidate for entry in choose(entries, self.finalists)]
        if not any(name.isdigit() for name in chosen):
            raise SearchError("no candidate was scored, so there is no finalist")
        plain = [entry.candidate for entry in entries if entry.kind in PLAIN]
        scales = sorted(
            (entry for entry in entries if entry.kind == "scale"),
            key=lambda entry: (entry.broken.get("search", 0.0), -entry.scores.get("search", 0.0)),
        )
        return list(dict.fromkeys([*chosen, *plain, *(entry.candidate for entry in scales[:SCALES_TO_VALIDATE])]))

    def _choose_finalist(self) -> str:
        """The best candidate on validation, of those that break no guard there; all finalists are recorded by rank."""
        entries = self._standings()
        chosen = {entry.candidate for entry in choose(entries, self.finalists)}
        ranked = sorted(
            (e for e in entries if e.candidate in chosen and e.kind == "candidate" and "validation" in e.scores),
            key=lambda entry: (entry.broken["validation"], -entry.scores["validation"], int(entry.candidate)),
        )
        if not ranked:
            raise SearchError("no finalist could be scored on validation")
        recorded = [finalist["candidate"] for finalist in self.recorder.state.finalists]
        if recorded != [entry.candidate for entry in ranked]:
            self.recorder.record(
                [
                    ("finalist", {"candidate": entry.candidate, "rank": rank, "score": entry.scores["validation"]})
                    for rank, entry in enumerate(ranked, start=1)
                ]
            )
        return ranked[0].candidate

    def _score(self, split: str, names: list[str], stage: str = "") -> None:
        """Score what is not scored yet on all items of a split."""
        if not names:
            return
        state, batch = self.recorder.state, self.batches[split]
        todo = [name for name in names if (name, split) not in state.done]
        jobs = [Job(job_id(name, split), self._recipe(name), batch) for name in todo]
        total = len(names)
        self.recorder.run(self.executor, jobs, lambda left: Progress(stage or split, total - left, total, state.best()))

    def _recipe(self, name: str) -> Recipe:
        return Recipe.model_validate(self.recorder.state.recipe(name))


def _rank(entry: Standing) -> tuple[float, float]:
    return entry.broken["validation"], -entry.scores["validation"]
