"""Commit first, act after: the one place where a search writes its ledger while it runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from evosearch.search.ledger import Ledger
from evosearch.search.ports import Executor, Failure, Job, Outcome, Tracker
from evosearch.search.state import SearchState
from evosearch.search.watching import Progress, Silent, Watcher

WAIT_S = 5.0  # how long to wait for an outcome before looking at the clock again


@dataclass
class Recorder:
    """Appends events, keeps the folded state in step with them, and tells the trackers."""

    ledger: Ledger
    search_id: str
    trackers: Sequence[Tracker] = ()
    watcher: Watcher = field(default_factory=Silent)

    def __post_init__(self) -> None:
        self.state = SearchState.from_events(self.ledger.events(self.search_id))

    def record(self, entries: list[tuple[str, dict[str, Any]]]) -> None:
        """Commit events in one transaction."""
        self._apply(entries, [])

    def run(self, executor: Executor, jobs: Sequence[Job], progress: Callable[[int], Progress]) -> None:
        """Keep the executor busy until every job has an outcome, committing each as it comes.

        Args:
            progress: number of jobs left → what to show.
        """
        left = {job.id for job in jobs}
        self.watcher.update(progress(len(left)))
        for job in jobs:
            executor.submit(job)
        while left:
            for outcome in executor.wait(WAIT_S):
                self.settle(outcome)
                left.discard(outcome.job.id)
            self.watcher.update(progress(len(left)))

    def settle(self, outcome: Outcome) -> None:
        """Commit what became of a job: its retries, its failure, or its card with every item's score."""
        job = outcome.job
        candidate = candidate_of(job)
        base: dict[str, Any] = {"candidate": candidate, "split": job.batch.split, "worker": outcome.worker}
        if job.part is not None:
            base["part"] = job.part
        entries: list[tuple[str, dict[str, Any]]] = [("retried", base | _why(fault)) for fault in outcome.retries]
        if outcome.card is not None:
            known = {"recipe_id": self.state.recipe_ids.get(candidate)}
            self._apply([*entries, ("scored", base | known | outcome.card.summary())], [(candidate, outcome.card)])
            return
        assert outcome.failure is not None
        self._apply([*entries, ("failed", base | _why(outcome.failure))], [])
        self.watcher.note(f"{outcome.job.id} failed: {outcome.failure.stage}: {outcome.failure.reason}")

    def _apply(self, entries: list[tuple[str, dict[str, Any]]], scores: list[tuple[str, Any]]) -> None:
        for event in self.ledger.append(self.search_id, entries, scores):
            self.state.apply(event)
        for tracker in self.trackers:
            tracker.notify()


def job_id(candidate: str, split: str, part: int | None = None) -> str:
    """A job is named by candidate, split and part of the split: what a search scores once."""
    return f"{candidate}@{split}" if part is None else f"{candidate}@{split}/{part}"


def candidate_of(job: Job) -> str:
    return job.id.rsplit("@", 1)[0]


def _why(failure: Failure) -> dict[str, Any]:
    return {"stage": failure.stage, "reason": failure.reason, "traceback": failure.traceback}
