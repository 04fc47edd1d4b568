"""What the search needs of the world, as protocols: what scores recipes, knows their items, and mirrors the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from evosearch.evaluation.types import Column, ItemBatch, ScoreCard
from evosearch.recipe.schema import Recipe


@dataclass(frozen=True)
class Job:
    """One recipe to be scored on one batch of items. Jobs are equal work wherever they run."""

    id: str  # unique in a search: candidate, split, and part of it
    recipe: Recipe
    batch: ItemBatch
    minibatch: int | None = None  # index of the minibatch that the batch is; None: the full split


@dataclass(frozen=True)
class Failure:
    """Why a job has no score card.

    `fault` says whose: the candidate's own (never retried) or the worker's (retried elsewhere, up to a cap).
    """

    stage: str  # materialize | score | worker
    reason: str
    traceback: str = ""
    fault: str = "candidate"  # candidate | worker


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a card or a failure, and how it went."""

    job: Job
    worker: str
    card: ScoreCard | None = None
    failure: Failure | None = None
    retries: tuple[Failure, ...] = ()  # worker faults met on the way
    seconds: Mapping[str, float] = field(default_factory=dict)


class Executor(Protocol):
    """Scores jobs, one or many at a time. `LocalExecutor` and `RayExecutor` are the two that ship."""

    @property
    def slots(self) -> int:
        """How many jobs can run at once now. It changes as workers start and die; 0 where none has started yet."""

    def submit(self, job: Job) -> None:
        """Queue a job; returns at once or, in process, after scoring it at the next `wait`."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that are ready, at least one unless the time runs out, nothing is queued, or slots were added.

        What is queued has gone to whoever became free before this returns, so that nobody waits for the caller.
        """

    def close(self) -> None:
        """Give the workers back; queued jobs are dropped."""


class Minibatches(Protocol):
    """The search split divided into minibatches; see `evaluation.statistics.minibatches`."""

    @property
    def batches(self) -> tuple[ItemBatch, ...]:
        """Disjoint, each with documents of every task, all of the split together."""

    def card(self, minibatch: int, columns: Mapping[str, Mapping[str, Column]]) -> ScoreCard:
        """What a part alone says of somebody who was scored on all items: task → column → values of these."""


class Tracker(Protocol):
    """Mirrors the ledger to people's eyes. May lag and may be down; never stops a search."""

    def notify(self) -> None:
        """New events are in the ledger."""

    def close(self, timeout_s: float) -> None:
        """Catch up as far as the time allows, then stop."""
