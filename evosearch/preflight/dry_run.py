"""Dry run: score one candidate where a search would score its candidates, to measure how long that takes.

On a cluster, other searches may occupy all places for workers. This shows within about a minute, and the dry run is
then skipped. A placed worker may have to fetch large models, so it has the same time limit as in a search.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from evosearch.errors import InputError, SearchError, SpecError
from evosearch.execution.deadlines import Timeouts
from evosearch.execution.local import LocalExecutor
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Executor, Job, Outcome
from evosearch.setup.executors import cluster_of, make_executor, worker_config, worker_count
from evosearch.setup.prepare import Prepared
from evosearch.setup.teachers import provisional_teachers
from evosearch.spec.config import WorkersConfig

PLACE_S = 75.0  # limit for placing a worker on a cluster that has nodes for it
NODE_S = 1800.0  # the same if a node has to start first
LONGEST_S = Timeouts.first  # limit for a placed worker to score its first candidate
TURN_S = 5.0  # between checks for a result


@runtime_checkable
class Pool(Protocol):
    """An executor whose workers are on a cluster; see `RayExecutor`."""

    @property
    def placed(self) -> int:
        """Number of workers that are placed."""

    def busy(self) -> bool:
        """Whether other jobs occupy the cluster."""

    def capacity(self) -> int:
        """Number of workers that fit on the cluster's current nodes."""


class NoPlaceError(Exception):
    """The cluster currently has no place for a worker."""


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run.

    Attributes:
        start: Seconds until the first candidate was scored, less `seconds`.
        seconds: Seconds for the second of two candidates; the first also includes one-time work.
        outcome: The second candidate's outcome.
        workers: Number of workers that would score at once.
        measured: Batch sizes of the worker, if it runs in this process.
        gradient: Seconds to differentiate one shard, if the optimizer asks for gradients.
    """

    start: float
    seconds: float
    outcome: Outcome
    workers: int
    measured: dict[str, Any] | None
    gradient: float | None = None


def dry_run(prepared: Prepared, watcher: Watcher, note: Callable[[str], None]) -> DryRun:
    """Score the start of a search twice; with gradients, differentiate it twice as well.

    Args:
        prepared: The search.
        watcher: Shows what is being prepared.
        note: Receives a note if fewer workers fit than the spec has.

    Raises:
        InputError: The candidate fails, or is not scored in time.
        NoPlaceError: No worker gets a place.
    """
    spec = prepared.spec
    workers = spec.config.workers
    minibatches = prepared.minibatches.batches if prepared.minibatches else (prepared.batches["search"],)
    teachers = provisional_teachers(prepared)
    jobs = [Job(f"dry-run@search.{number}", prepared.example, minibatches[0], teachers=teachers) for number in range(2)]
    began = time.monotonic()
    executor = _executor(prepared, watcher)
    try:
        scored(executor, jobs[0], workers, spec.where)
        started = time.monotonic()
        outcome = scored(executor, jobs[1], workers, spec.where)
        seconds = time.monotonic() - started
        gradient = _gradient_seconds(prepared, executor, jobs[0]) if prepared.steps else None
        working = parallel_workers(workers, executor, note)
        measured = executor.worker.measured() if isinstance(executor, LocalExecutor) else None
    finally:
        executor.close()
    return DryRun(max(0.0, started - began - seconds), seconds, outcome, working, measured, gradient)


def _gradient_seconds(prepared: Prepared, executor: Executor, job: Job) -> float:
    """Seconds to differentiate the first shard; the first time, the model's activations are measured too."""
    space, steps, workers = prepared.space, prepared.steps, prepared.spec.config.workers
    assert steps is not None
    slopes = replace(
        job,
        recipe=space.with_derivatives(space.initial()),
        gradient=len(space.dimensions),
        weights=steps.weights(0),
        minibatch=0,
    )
    scored(executor, replace(slopes, id="dry-run@search.2"), workers, prepared.spec.where)
    began = time.monotonic()
    scored(executor, replace(slopes, id="dry-run@search.3"), workers, prepared.spec.where)
    return time.monotonic() - began


def _executor(prepared: Prepared, watcher: Watcher) -> Executor:
    workers = prepared.spec.config.workers
    if cluster_of(workers):
        return make_executor(workers.model_copy(update={"count": 1}), prepared, watcher)
    count, _ = worker_count(workers)
    dtype = prepared.example.output_dtype
    config = worker_config(workers, prepared.models, prepared.suite, dtype, count or 1)
    return LocalExecutor(config, watcher.preparing, prepared.harness)


def parallel_workers(workers: WorkersConfig, executor: Executor, note: Callable[[str], None]) -> int:
    """Number of workers that would score at once: the spec's, as far as they fit on the current nodes."""
    count, _ = worker_count(workers)
    if not isinstance(executor, Pool):
        return count or 1
    fitting = max(1, executor.capacity())
    if count is not None and count > fitting:
        note(f"{fitting} of {count} workers fit on the cluster's current nodes: the forecast assumes {fitting}")
    return fitting if count is None else min(count, fitting)


def scored(executor: Executor, job: Job, workers: WorkersConfig, where: str) -> Outcome:
    """Submit a job and wait for its outcome.

    Raises:
        InputError: The candidate fails, or is not scored in time.
        NoPlaceError: No worker gets a place.
    """
    executor.submit(job)
    key = f"{where.partition(': ')[0]}: workers"
    had_place = had_none = time.monotonic()
    while True:
        try:
            outcomes = executor.wait(TURN_S)
        except SearchError as error:
            raise SpecError(key, f"no worker could start: {error}") from error
        for outcome in outcomes:
            if outcome.failure is not None:
                raise InputError(where, f"the candidate of the dry run failed: {outcome.failure.reason}")
            return outcome
        now = time.monotonic()
        if isinstance(executor, Pool) and not executor.placed:
            had_none = now
            _give_up(executor, now - had_place)
        else:
            had_place = now
        if now - had_none > LONGEST_S:
            what = f"no worker of {cluster_of(workers)} scored a candidate in {LONGEST_S / 60:.0f} minutes"
            raise SpecError(key, what, next="See the logs of the cluster's nodes")


def _give_up(pool: Pool, waited_s: float) -> None:
    """Stop waiting for a place.

    Raises:
        NoPlaceError: Other jobs occupy all places, or no node with a place has started.
    """
    if waited_s > PLACE_S and pool.busy():
        raise NoPlaceError("the cluster is busy")
    if waited_s > NODE_S:
        raise NoPlaceError(f"the cluster had no place for a worker in {NODE_S / 60:.0f} minutes")
