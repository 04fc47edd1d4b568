"""Protocols of the search loop's collaborators: executor, minibatches and tracker."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from evosearch.evaluation.types import Column, GradientCard, ItemBatch, ScoreCard, Teacher, TrainingCard
from evosearch.recipe.schema import Recipe


@dataclass(frozen=True)
class Training:
    """Fine-tuning of a job's model on the job's items.

    Attributes:
        items: Budget in item evaluations; a training step takes three for each of its items.
        seed: Seed of the training.
        scored: Batches to score the result on.
    """

    items: int
    seed: int
    scored: tuple[ItemBatch, ...]


@dataclass(frozen=True)
class Job:
    """One recipe to score on one batch of items, to differentiate there, or to fine-tune there.

    Attributes:
        id: Unique in a search: candidate, split and minibatch.
        recipe: The recipe; for a gradient, with `Dual` numbers where a dimension has an effect.
        batch: The items.
        minibatch: Index of the minibatch; None: the full split.
        gradient: Number of dimensions of the gradient; None: the job is scored and has no gradient.
        weights: For a gradient: task → weight of each of its items in the fitness, see `GradientCard`; None: those of
            the suite on this batch.
        teachers: Task → its teacher, of a suite with `fitness: {teachers: …}`; empty until they are chosen.
        training: The job fine-tunes the model on its items and scores it on others; None: it does not.
    """

    id: str
    recipe: Recipe
    batch: ItemBatch
    minibatch: int | None = None
    gradient: int | None = None
    weights: Mapping[str, float] | None = None
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    training: Training | None = None

    @property
    def evaluations(self) -> int:
        """Number of item evaluations that the job takes; a gradient or a training step takes three for each item."""
        if self.training is not None:
            return self.training.items + sum(map(len, self.training.scored))
        return len(self.batch) * (1 if self.gradient is None else 3)


@dataclass(frozen=True)
class Failure:
    """Why a job has no card."""

    stage: str  # materialize | score | worker
    reason: str
    traceback: str = ""
    fault: str = "candidate"  # candidate (never retried) | worker (retried elsewhere, up to a cap)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job: a score card, a gradient card or a training card (if the job asked for one), or a failure."""

    job: Job
    worker: str
    card: ScoreCard | None = None
    failure: Failure | None = None
    retries: tuple[Failure, ...] = ()  # worker faults before this outcome
    seconds: Mapping[str, float] = field(default_factory=dict)
    gradient: GradientCard | None = None
    training: TrainingCard | None = None


class Executor(Protocol):
    """Scores jobs; see `LocalExecutor` and `RayExecutor`."""

    @property
    def slots(self) -> int:
        """Number of jobs that can run at once now; changes as workers start and die, 0 before the first starts."""

    def submit(self, job: Job) -> None:
        """Queue a job; returns at once."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return outcomes: at least one unless the time runs out, nothing is queued, or slots were added.

        Queued jobs are assigned to free workers before this returns, so that workers do not wait for the caller.
        """

    def close(self) -> None:
        """Release the workers; queued jobs are dropped."""


class Minibatches(Protocol):
    """Minibatches of the search split; see `evaluation.statistics.minibatches`."""

    @property
    def batches(self) -> tuple[ItemBatch, ...]:
        """Batches of the search split, each with a fixed index."""

    def weights(self, minibatch: int) -> Mapping[str, float] | None:
        """Return the weights of a gradient job on a minibatch, see `Job`."""

    def card(self, minibatch: int, columns: Mapping[str, Mapping[str, Column]]) -> ScoreCard:
        """Return the score card on a minibatch of every task, of a candidate that was scored on the full split.

        Args:
            minibatch: Index of the minibatch.
            columns: Task → column → values on the full split.
        """


class Tracker(Protocol):
    """Mirrors the ledger to a tracking store. It may lag or be down, and never stops a search."""

    def notify(self) -> None:
        """Receive notice that the ledger has new events."""

    def close(self, timeout_s: float) -> None:
        """Catch up for at most `timeout_s`, then stop."""
