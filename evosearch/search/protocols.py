"""Protocols of the search loop's collaborators: executor, minibatches and tracker."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from evosearch.evaluation.types import Column, GradientCard, ItemBatch, ScoreCard
from evosearch.recipe.schema import Recipe


@dataclass(frozen=True)
class Job:
    """One recipe to score on one batch of items, or to differentiate there.

    Attributes:
        id: Unique in a search: candidate, split and minibatch.
        recipe: The recipe; for a gradient, with `Dual` numbers where a dimension has an effect.
        batch: The items.
        minibatch: Index of the minibatch; None: the full split.
        gradient: Number of dimensions of the gradient; None: the job is scored and has no gradient.
        weights: For a gradient: task → weight of each of its items in the fitness, see `GradientCard`; None: those of
            the suite on this batch.
    """

    id: str
    recipe: Recipe
    batch: ItemBatch
    minibatch: int | None = None
    gradient: int | None = None
    weights: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Failure:
    """Why a job has no card."""

    stage: str  # materialize | score | worker
    reason: str
    traceback: str = ""
    fault: str = "candidate"  # candidate (never retried) | worker (retried elsewhere, up to a cap)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job: a score card, a gradient card (if the job asked for one), or a failure."""

    job: Job
    worker: str
    card: ScoreCard | None = None
    failure: Failure | None = None
    retries: tuple[Failure, ...] = ()  # worker faults before this outcome
    seconds: Mapping[str, float] = field(default_factory=dict)
    gradient: GradientCard | None = None


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
        """Disjoint batches, each with documents of every task, that together are the split."""

    def card(self, minibatch: int, columns: Mapping[str, Mapping[str, Column]]) -> ScoreCard:
        """Return the score card on a minibatch of a candidate that was scored on the full split.

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
