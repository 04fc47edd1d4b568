"""The only writer of a running search's ledger: events are committed before anything acts on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from evosearch.evaluation.types import GradientCard, ScoreCard, TrainingCard
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Progress, Silent, Watcher
from evosearch.search.protocols import Executor, Failure, Job, Outcome, Tracker
from evosearch.search.records import FailureRecord, GradientRecord, Payload, TrainedRecord
from evosearch.search.state import SearchState

WAIT_S = 5.0  # longest wait for an outcome before the budget is checked again


@dataclass
class Recorder:
    """Appends events, keeps the folded state up to date, and notifies the trackers."""

    ledger: Ledger
    search_id: str
    trackers: Sequence[Tracker] = ()
    watcher: Watcher = field(default_factory=Silent)

    def __post_init__(self) -> None:
        ledger, search_id = self.ledger, self.search_id
        self.state = SearchState.from_events(ledger.stream(search_id), read=lambda seq: ledger.event(search_id, seq))

    def record(self, entries: list[tuple[str, Payload]]) -> None:
        """Commit events in one transaction."""
        self._apply(entries, [])

    def run(self, executor: Executor, jobs: Sequence[Job], progress: Callable[[int], Progress]) -> None:
        """Keep the executor busy until every job has an outcome, committing each as it comes.

        Args:
            executor: Scores the jobs.
            jobs: Jobs to score.
            progress: Number of jobs left → progress to show.
        """
        left = {job.id for job in jobs}
        self.watcher.update(progress(len(left)))
        for job in jobs:
            executor.submit(job)
        while left:
            outcomes = executor.wait(WAIT_S)
            self.settle(outcomes)
            left -= {outcome.job.id for outcome in outcomes}
            self.watcher.update(progress(len(left)))

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Commit the outcomes of jobs in one transaction: retries, failures, scores, gradients and trainings."""
        entries: list[tuple[str, Payload]] = []
        scores: list[tuple[str, ScoreCard]] = []
        for outcome in outcomes:
            job = outcome.job
            candidate = candidate_of(job)
            entries += [("retried", _record_of(fault, outcome).to_payload()) for fault in outcome.retries]
            if outcome.training is not None:
                entries.append(("trained", _trained_of(outcome.training, outcome).to_payload()))
            for card in _cards(outcome):
                about = {"candidate": candidate, "minibatch": job.minibatch, "worker": outcome.worker}
                about["recipe_id"] = self.state.recipe_ids.get(candidate)
                entries.append(("scored", about | card.summary()))
                scores.append((candidate, card))
            if outcome.gradient is not None:
                entries.append(("differentiated", _gradient_of(outcome.gradient, outcome).to_payload()))
            if outcome.failure is not None:
                record = replace(_record_of(outcome.failure, outcome), seconds=dict(outcome.seconds))
                entries.append(("failed", record.to_payload()))
        if entries:
            self._apply(entries, scores)
        for outcome in outcomes:
            if (failure := outcome.failure) is not None:
                self.watcher.note(f"{outcome.job.id} failed: {failure.stage}: {failure.reason}")

    def _apply(self, entries: list[tuple[str, Payload]], scores: list[tuple[str, ScoreCard]]) -> None:
        for event in self.ledger.append(self.search_id, entries, scores):
            self.state.apply(event)
        for tracker in self.trackers:
            tracker.notify()


def job_id(candidate: str, split: str, minibatch: int | None = None) -> str:
    """Name a job by candidate, split and minibatch; a search evaluates each of these once."""
    return f"{candidate}@{split}" if minibatch is None else f"{candidate}@{split}/{minibatch}"


def candidate_of(job: Job) -> str:
    """Return the candidate or baseline that a job evaluates."""
    return job.id.rsplit("@", 1)[0]


def _cards(outcome: Outcome) -> tuple[ScoreCard, ...]:
    """Return the score cards of an outcome: those of a trained model, at most one otherwise."""
    if outcome.training is not None:
        return outcome.training.cards
    return (outcome.card,) if outcome.card is not None else ()


def _trained_of(card: TrainingCard, outcome: Outcome) -> TrainedRecord:
    return TrainedRecord(
        candidate=candidate_of(outcome.job),
        form=card.form,
        parameters=card.parameters,
        rate=card.rate,
        steps=card.steps,
        kept=card.kept,
        items=card.items,
        objective=list(card.objective),
        seconds=card.seconds,
        worker=outcome.worker,
    )


def _gradient_of(card: GradientCard, outcome: Outcome) -> GradientRecord:
    minibatch = outcome.job.minibatch
    assert minibatch is not None, "gradients are computed on minibatches"
    return GradientRecord(
        candidate=candidate_of(outcome.job),
        split=card.split,
        minibatch=minibatch,
        fitness=card.fitness,
        tasks=card.tasks,
        batch=card.batch_digest,
        tokens=card.tokens,
        seconds=card.seconds,
        modes=card.modes,
        worker=outcome.worker,
        gradient=card.gradient,
    )


def _record_of(failure: Failure, outcome: Outcome) -> FailureRecord:
    job = outcome.job
    return FailureRecord(
        candidate=candidate_of(job),
        split=job.batch.split,
        stage=failure.stage,
        reason=failure.reason,
        traceback=failure.traceback,
        worker=outcome.worker,
        minibatch=job.minibatch,
    )
