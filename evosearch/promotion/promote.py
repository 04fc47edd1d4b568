"""From the search's best to a promoted winner: finalists on `validation`, the gate on `test`.

Where the search scored candidates on parts of its split, the best of them are first scored on all of it, and finalists
are chosen by that: the best of many figures from few items is mostly luck.

Everything that is chosen is chosen on `validation`; `test` is opened once, for a fixed list, and the opening is on
record before the first question is asked. What is recorded is not done again, so this, too, goes on after a kill.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evosearch.errors import SearchError
from evosearch.evaluation.types import Column, ItemBatch
from evosearch.promotion.finalists import CONTROL_KINDS, Standing, best, choose, kind_of, standings
from evosearch.promotion.gate import Contender, GateDecision, Measure, Role, decide
from evosearch.promotion.guards import Guarded
from evosearch.recipe.schema import Recipe
from evosearch.search.ledger import Ledger
from evosearch.search.ports import Executor, Job
from evosearch.search.recorder import Recorder, job_id
from evosearch.search.watching import Progress

SCALES_TO_VALIDATE = 3  # of the control sweep, the best by score on `search`
RESCORED = 2  # candidates scored on all of `search` for each finalist, where the search scored on parts
CHAMPION = "champion"
ROLES: dict[str, Role] = {"base": "base", "parent": "parent", "champion": "champion"}


@dataclass(frozen=True)
class Champion:
    """The model that holds the alias `champion` now."""

    recipe: Recipe
    recipe_id: str


@dataclass
class Promotion:
    """The last part of a search.

    Args:
        openings: the ledger that counts how often a test set was opened, by all searches.
        batches: the items of each split.
        metrics: task → the column of the suite's metric, guarded tasks too.
        chances: guarded task → its chance level.
        finalists: how many candidates go to validation.
        champion: the present champion, where there is one that can be compared.
    """

    recorder: Recorder
    executor: Executor
    openings: Ledger
    batches: Mapping[str, ItemBatch]
    metrics: Mapping[str, str]
    measure: Measure
    finalists: int = 8
    champion: Champion | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self) -> GateDecision:
        """Validate, open the test, decide, and record the decision.

        Raises:
            SearchError: no candidate was scored, or a contender fails on a split.
        """
        self._score("search", self._to_rescore(), "rescoring")
        self._score("validation", self._to_validate())
        finalist = self._choose_finalist()
        contenders = self._test_list(finalist)
        self._open_test(contenders)
        self._score("test", contenders)
        decision = self._decide(finalist)
        self.recorder.record([("gated", decision.to_dict() | {"finalist": finalist, "notes": list(self.notes)})])
        return decision

    def _standings(self) -> list[Standing]:
        """Controls in their own order, then candidates as they were asked: not as workers happened to finish."""
        state = self.recorder.state
        order = {name: index for index, name in enumerate([*state.controls, *state.asked])}
        found = standings(self.recorder.ledger.events(self.recorder.search_id))
        found = [
            replace(entry, broken={split: state.violation(entry.candidate, split) for split in entry.scores})
            for entry in found
        ]
        return sorted(found, key=lambda entry: order.get(entry.candidate, len(order)))

    def _to_rescore(self) -> list[str]:
        """Of a search on parts, the best candidates with distinct recipes, by what the optimizer was told.

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
        """Finalists, base, parents, uniform, and the best scales of the sweep."""
        entries = self._standings()
        chosen = [entry.candidate for entry in choose(entries, self.finalists)]
        if not any(name.isdigit() for name in chosen):
            raise SearchError("no candidate was scored, so there is no finalist")
        plain = [entry.candidate for entry in entries if entry.kind in ("base", "parent", "uniform")]
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

    def _best_control(self) -> str | None:
        control = best(self._standings(), "validation", CONTROL_KINDS)
        return control.candidate if control else None

    def _test_list(self, finalist: str) -> list[str]:
        """Finalist, base, parents, uniform and the best scale (one of the two is the best control), champion."""
        entries = self._standings()
        names = [finalist, *(entry.candidate for entry in entries if entry.kind in ("base", "parent", "uniform"))]
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
        if name == CHAMPION:
            assert self.champion is not None
            return self.champion.recipe
        return Recipe.model_validate(self.recorder.state.recipe(name))

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
        control = self._best_control()
        if control is not None:
            roles[control] = "control"
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
