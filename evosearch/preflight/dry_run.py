"""One candidate, scored where a search's candidates would be, for how long that takes.

On a cluster a search that runs there may have all places; that is known within a minute or so, and nothing is tried
then. A worker that has a place may have to fetch large models: it is waited for as long as a search would wait.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from evosearch.errors import InputError, SearchError, SpecError
from evosearch.execution.deadlines import Patience
from evosearch.execution.local import LocalExecutor
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Executor, Job, Outcome
from evosearch.setup.executors import cluster_of, make_executor, worker_config, worker_count
from evosearch.setup.prepare import Prepared
from evosearch.spec.spec import WorkersConfig

PLACE_S = 75.0  # until a worker has a place on a cluster that has nodes for it
NODE_S = 1800.0  # the same where a node has to start first
LONGEST_S = Patience.first  # until a worker that has a place has scored a candidate
TURN_S = 5.0


@runtime_checkable
class Pool(Protocol):
    """What is asked of an executor whose workers are on a cluster; see `RayExecutor`."""

    @property
    def placed(self) -> int: ...

    def busy(self) -> bool: ...

    def room(self) -> int: ...


class NoPlaceError(Exception):
    """No worker has a place now, which is nobody's mistake."""


@dataclass(frozen=True)
class Trial:
    """How it went. Times are seconds.

    Attributes:
        start: until the first candidate is scored, less those of one.
        seconds: of the second of two: the first also lays out what stays.
        workers: that would score at once.
        measured: how much one runs at once, where it is here to be asked.
    """

    start: float
    seconds: float
    outcome: Outcome
    workers: int
    measured: dict[str, Any] | None


def attempt(prepared: Prepared, watcher: Watcher, note: Callable[[str], None]) -> Trial:
    """Args:
        note: told where fewer workers than are asked for would score.

    Raises:
        InputError: the candidate fails, or there is no answer in time.
        NoPlaceError: no worker gets a place.
    """
    spec = prepared.spec
    workers = spec.config.workers
    minibatches = prepared.minibatches.batches if prepared.minibatches else (prepared.batches["search"],)
    jobs = [Job(f"trial@search.{number}", prepared.example, minibatches[0]) for number in range(2)]
    began = time.monotonic()
    executor: Executor
    if cluster_of(workers):
        executor = make_executor(workers.model_copy(update={"count": 1}), prepared, watcher)
    else:
        count, _ = worker_count(workers)
        dtype = prepared.example.output_dtype
        config = worker_config(workers, prepared.models, prepared.suite, dtype, count or 1)
        executor = LocalExecutor(config, watcher.preparing, prepared.harness)
    try:
        scored(executor, jobs[0], workers, spec.where)
        started = time.monotonic()
        outcome = scored(executor, jobs[1], workers, spec.where)
        seconds = time.monotonic() - started
        working = at_once(workers, executor, note)
        measured = executor.worker.measured() if isinstance(executor, LocalExecutor) else None
    finally:
        executor.close()
    return Trial(max(0.0, started - began - seconds), seconds, outcome, working, measured)


def at_once(workers: WorkersConfig, executor: Executor, note: Callable[[str], None]) -> int:
    """How many workers would score at once: as many as are asked for, and as the nodes that are there have room for."""
    count, _ = worker_count(workers)
    if not isinstance(executor, Pool):
        return count or 1
    room = max(1, executor.room())
    if count is not None and count > room:
        note(f"the cluster as it is has room for {room} of the {count} workers asked for: time is forecast for {room}")
    return room if count is None else min(count, room)


def scored(executor: Executor, job: Job, workers: WorkersConfig, where: str) -> Outcome:
    """Raises:
    InputError: the candidate fails, or there is no answer in time.
    NoPlaceError: no worker gets a place.
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
                raise InputError(where, f"a trial candidate fails: {outcome.failure.reason}")
            return outcome
        now = time.monotonic()
        if isinstance(executor, Pool) and not executor.placed:
            had_none = now
            _give_up(executor, now - had_place)
        else:
            had_place = now
        if now - had_none > LONGEST_S:
            what = f"no worker of {cluster_of(workers)} scored a trial candidate in {LONGEST_S / 60:.0f} minutes"
            raise SpecError(key, what, next="See the logs of its nodes")


def _give_up(pool: Pool, waited: float) -> None:
    """Args:
        waited: for a place, in seconds.

    Raises:
        NoPlaceError: others have all places, or no node came that has one.
    """
    if waited > PLACE_S and pool.busy():
        raise NoPlaceError("the cluster is busy")
    if waited > NODE_S:
        raise NoPlaceError(f"the cluster had no place for a worker in {NODE_S / 60:.0f} minutes")
