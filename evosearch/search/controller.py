"""The loop: ask, score, record, tell.

The controller's only state is the ledger. Every event is committed before anything acts on it, so a search that is
killed at any moment goes on from what is recorded: the optimizer is rebuilt by replay, what was scored is not scored
again, what was asked and not scored is scored now.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evosearch.errors import ReplayError, SearchError
from evosearch.evaluation.types import ItemBatch
from evosearch.recipe.schema import Recipe
from evosearch.search.controls import Control
from evosearch.search.optimizers.registry import Optimizer
from evosearch.search.ports import Executor, Job, Parts
from evosearch.search.recorder import Recorder, job_id
from evosearch.search.replay import replay
from evosearch.search.sampling import Sampling
from evosearch.search.space import SearchSpace
from evosearch.search.types import Genome, Observation
from evosearch.search.watching import Progress

HOPELESS = 8  # candidates that fail, before any succeeds, until the search gives up
START_FROM = {"init": (), "best_control": ("uniform", "scale"), "parents": ("parent",)}  # option → kinds of controls


@dataclass(frozen=True)
class Budget:
    """When to stop asking: so many candidates, or so many hours over all sessions of the search."""

    candidates: int | None = None
    hours: float | None = None


@dataclass
class Controller:
    """One search, from its ledger to its last candidate.

    Args:
        identify: recipe → recipe_id, with this search's inputs.
        make_optimizer: start genome → a fresh optimizer.
        parts: of `batch`, where each generation is scored on one of them.
        start: `init`, `best_control` or `parents`: where the optimizer starts.
        continue_from_best: where the record cannot be replayed, go on with a new optimizer from the best candidate.
    """

    recorder: Recorder
    executor: Executor
    space: SearchSpace
    batch: ItemBatch
    controls: Sequence[Control]
    identify: Callable[[Recipe], str]
    make_optimizer: Callable[[Genome], Optimizer]
    parts: Parts | None = None
    start: str = "best_control"
    budget: Budget = field(default_factory=Budget)
    continue_from_best: bool = False

    def __post_init__(self) -> None:
        self.state = self.recorder.state
        recorder = self.recorder
        self._items = Sampling(self.batch, self.parts, recorder.ledger, recorder.search_id, self.state)
        self._generation = 1  # how many the optimizer asks together
        self._first_ask = 0  # of the present optimizer: not 0 after a restart
        self._began: float | None = None  # when this session's first candidate was submitted
        self._finished_before = len(self.state.finished)

    def run(self) -> str:
        """Search until something says stop.

        Returns:
            The reason: `candidates`, `hours`, or the optimizer's own.

        Raises:
            SearchError: every candidate fails, or the recorded search cannot be replayed.
        """
        self._score_controls()
        optimizer, pending = self._restore()
        while True:
            if pending:
                self._finish(optimizer, pending)
            reason = self._reason_to_stop(optimizer)
            if reason:
                return reason
            pending = self._ask(optimizer)

    def _score_controls(self) -> None:
        new = [control for control in self.controls if control.name not in self.state.controls]
        if new:
            self.recorder.record([("control", self._control_payload(control)) for control in new])
        jobs = [
            Job(job_id(control.name, self.batch.split), control.recipe, self.batch)
            for control in self.controls
            if control.recipe is not None and (control.name, self.batch.split) not in self.state.done
        ]
        total = sum(control.recipe is not None for control in self.controls)
        self.recorder.run(self.executor, jobs, lambda left: Progress("controls", total - left, total))
        if total and not any(
            control.name in self.state.control_kinds and self._standing(control.name) for control in self.controls
        ):
            raise SearchError(f"not one control could be scored; {self._last_failure()}")
        for task in self.state.limits.keys() - self.state.references().keys():
            what = f"the guard of '{task}' has nothing to be held against: neither base nor a parent could be scored"
            raise SearchError(f"{what}; {self._last_failure()}")

    def _control_payload(self, control: Control) -> dict[str, Any]:
        payload: dict[str, Any] = {"candidate": control.name, "name": control.name, "kind": control.kind}
        if control.recipe is None:
            return payload | {"skipped": control.skipped}
        return payload | {"recipe": control.recipe.to_dict(), "recipe_id": self.identify(control.recipe)}

    def _restore(self) -> tuple[Optimizer, list[Mapping[str, Any]]]:
        """The optimizer where the record left it, and what it asked and was not told."""
        events = self.recorder.ledger.events(self.recorder.search_id)
        restarts = [event for event in events if event.type == "restarted"]
        first = 0
        if restarts:
            first = sum(event.type == "asked" and event.seq < restarts[-1].seq for event in events)
            events = [event for event in events if event.seq > restarts[-1].seq]
        start = dict(restarts[-1].payload["start"]) if restarts else self._start_genome()
        optimizer = self._make(start, first)
        try:
            return optimizer, list(replay(optimizer, events).pending)
        except ReplayError as exc:
            if not self.continue_from_best:
                raise
            return self._restart(exc), []

    def _restart(self, reason: ReplayError) -> Optimizer:
        """A fresh optimizer from the best candidate so far. What was asked and not scored is scored, for the record."""
        self._score(list(self.state.asked.values()))
        ranked = [(standing, name) for name in self.state.asked if (standing := self._standing(name)) is not None]
        start = dict(self.state.asked[max(ranked)[1]]["genome"]) if ranked else self._start_genome()
        self.recorder.record([("restarted", {"start": start, "reason": str(reason)})])
        return self._make(start, self.state.asked_count)

    def _make(self, start: Genome, first_ask: int) -> Optimizer:
        """A fresh optimizer, whose asks are counted from `first_ask`."""
        optimizer = self.make_optimizer(start)
        self._generation, self._first_ask = optimizer.population, first_ask
        return optimizer

    def _start_genome(self) -> Genome:
        """Where the optimizer starts: it follows from recorded scores, so it is the same at every resume."""
        scored = [
            (standing, control)
            for control in self.controls
            if control.kind in START_FROM[self.start] and (standing := self._standing(control.name)) is not None
        ]
        if not scored:
            return self.space.initial()
        return self.space.with_weight(max(scored, key=lambda pair: pair[0])[1].weights)

    def _ask(self, optimizer: Optimizer) -> list[Mapping[str, Any]]:
        """Ask for a group and record it, before anything is scored."""
        first, count, group = self.state.asked_count, optimizer.population, self.state.groups
        if self.budget.candidates is not None:
            count = min(count, self.budget.candidates - first)
        payloads: list[Mapping[str, Any]] = []
        for index, genome in enumerate(optimizer.ask(count)):
            recipe = self.space.fill(genome)
            recipe_id = self.identify(recipe)
            part = self._items.part(first + index - self._first_ask, self._generation)
            twins = (p["candidate"] for p in payloads if (p["recipe_id"], p.get("part")) == (recipe_id, part))
            payloads.append(
                ({} if part is None else {"part": part})
                | {
                    "candidate": str(first + index),
                    "group": group,
                    "genome": dict(genome),
                    "recipe": recipe.to_dict(),
                    "recipe_id": recipe_id,
                    "duplicate_of": self.state.first_with.get((recipe_id, part)) or next(twins, None),
                }
            )
        self.recorder.record([("asked", dict(payload)) for payload in payloads])
        return payloads

    def _finish(self, optimizer: Optimizer, payloads: Sequence[Mapping[str, Any]]) -> None:
        """Score what is not scored yet, then tell, group by group, in the order asked."""
        self._score(payloads)
        for group in sorted({payload["group"] for payload in payloads}):
            observations = [self._observe(payload) for payload in payloads if payload["group"] == group]
            told = {"group": group, "observations": [_plain(observation) for observation in observations]}
            self.recorder.record([("told", told)])
            optimizer.tell(observations)

    def _score(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        self._began = self._began or time.monotonic()
        jobs = []
        for payload in payloads:
            candidate, part = payload["candidate"], payload.get("part")
            if payload["duplicate_of"] is None and not self._items.is_done(candidate, part):
                batch, recipe = self._items.batch(part), Recipe.model_validate(payload["recipe"])
                jobs.append(Job(job_id(candidate, batch.split, part), recipe, batch, part))
        self.recorder.run(self.executor, jobs, lambda left: self._progress(self.state.asked_count - left))
        self._give_up_if_hopeless()

    def _observe(self, payload: Mapping[str, Any]) -> Observation:
        """What the optimizer is told of one candidate; a duplicate has the first one's score card."""
        told = self._items.told(payload["duplicate_of"] or payload["candidate"], payload.get("part"))
        if told is None:
            return Observation(payload["candidate"], payload["genome"], (), (), "failed")
        fitness, violations = told
        return Observation(payload["candidate"], payload["genome"], (fitness,), violations)

    def _standing(self, name: str) -> tuple[float, float] | None:
        """What is known of a control or candidate, for comparison: greater is better, breaking no guard comes first."""
        evidence = self.state.evidence(name)
        return None if evidence is None else (-evidence[0], evidence[1])

    def _give_up_if_hopeless(self) -> None:
        failed = [failure for failure in self.state.failed if failure["candidate"].isdigit()]
        if len(failed) >= HOPELESS and not self.state.any_scored:
            raise SearchError(f"all {len(failed)} candidates failed; {self._last_failure()}")

    def _last_failure(self) -> str:
        last = self.state.failed[-1]
        return f"the last was {last['candidate']}: {last['stage']}: {last['reason']}"

    def _reason_to_stop(self, optimizer: Optimizer) -> str | None:
        if self.budget.candidates is not None and self.state.asked_count >= self.budget.candidates:
            return "candidates"
        if self.budget.hours is not None and self._hours() >= self.budget.hours:
            return "hours"
        reason = optimizer.stop_reason()
        return f"optimizer: {reason}" if reason else None

    def _hours(self) -> float:
        return (self.state.seconds_before + max(0.0, time.time() - self.state.last_time)) / 3600.0

    def _progress(self, done: int) -> Progress:
        elapsed = time.monotonic() - (self._began or time.monotonic())
        fresh = len(self.state.finished) - self._finished_before
        rate = fresh / elapsed * 60.0 if fresh and elapsed else None
        total = self.budget.candidates
        left = (total - done) / rate * 60.0 if total is not None and rate else None
        if self.budget.hours is not None:
            clock = self.budget.hours * 3600.0 - self._hours() * 3600.0
            left = clock if left is None else min(left, clock)
        best = self.state.best()
        return Progress("search", done, total, best, len(self.state.failed), rate, left)


def _plain(observation: Observation) -> dict[str, Any]:
    """An observation as the ledger holds it."""
    estimate = observation.objectives[0] if observation.objectives else None
    told = {
        "candidate": observation.ask_id,
        "value": estimate.value if estimate else None,
        "stderr": estimate.stderr if estimate else None,
        "n": estimate.n if estimate else 0,
        "state": observation.state,
    }
    return told | ({"violations": list(observation.violations)} if observation.violations else {})
