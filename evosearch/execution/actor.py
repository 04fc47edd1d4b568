"""A worker behind Ray, and what travels between it and the pool: recipes and scores, never weights or documents.

An item batch (thousands of document hashes) is the same for every candidate. It is put into Ray's object store once,
fetched by each worker once, and left out of jobs and answers.
"""

import os
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import InputError
from evosearch.evaluation.types import ItemBatch
from evosearch.execution.demand import Demand
from evosearch.search.protocols import Job, Outcome

BATCHES = 64  # kept by each worker, and in the store: the parts of a search, its splits


class Scores(Protocol):
    """What a node runs: scores one job after another. `Worker` is the real one."""

    name: str

    def run(self, job: Job) -> Outcome: ...


class Config(Protocol):
    """Builds a worker on any node. It is pickled, so plain data. `WorkerConfig` is the real one.

    `threads` are the CPU threads of one worker, `cache` the folder of files that are made once a machine. `with_gpus`
    is told how many GPUs each worker is given, which may come out only once the cluster is known.
    """

    @property
    def threads(self) -> int: ...

    @property
    def cache(self) -> Path: ...

    def with_gpus(self, gpus: float) -> "Config": ...

    def worker(self) -> Scores: ...


@dataclass(frozen=True)
class Place:
    """Where a worker has come to be."""

    node: str  # Ray's id of it
    name: str  # host:pid


class Actor:
    """Its constructor does nothing, so that what goes wrong in building the worker comes back as data."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._worker: Scores | None = None
        self._batches: OrderedDict[str, ItemBatch] = OrderedDict()

    def place(self) -> Place:
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return Place(node, f"{socket.gethostname()}:{os.getpid()}")

    def start(self) -> InputError | None:
        try:
            self._worker = self._config.worker()
        except InputError as exc:
            return exc  # which travels by its fields, without cause and traceback
        return None

    def ping(self) -> None:
        """Answered where the process lives, and after what it was told before."""

    def run(self, job: Job, digest: str, batch: list[Any]) -> Outcome:
        """Score a job whose batch is left out.

        Args:
            digest: of the batch.
            batch: a reference to it, in a list: so that Ray does not fetch it each time.
        """
        assert self._worker is not None
        outcome = self._worker.run(replace(job, batch=self._batch(digest, batch[0])))
        return replace(outcome, job=job)

    def _batch(self, digest: str, reference: Any) -> ItemBatch:
        import ray

        if digest not in self._batches:
            self._batches[digest] = ray.get(reference)
            if len(self._batches) > BATCHES:
                self._batches.popitem(last=False)
        self._batches.move_to_end(digest)
        return self._batches[digest]


class Batches:
    """The pool's side: item batches in Ray's store, by digest."""

    def __init__(self) -> None:
        self._references: OrderedDict[str, Any] = OrderedDict()

    def packed(self, job: Job) -> tuple[Job, str, list[Any]]:
        """The arguments of `Actor.run`."""
        import ray

        digest = job.batch.digest
        if digest not in self._references:
            self._references[digest] = ray.put(job.batch)
            if len(self._references) > BATCHES:
                self._references.popitem(last=False)
        self._references.move_to_end(digest)
        return replace(job, batch=ItemBatch(job.batch.split, ())), digest, [self._references[digest]]


def actor_maker(config: Config, demand: Demand) -> Callable[[], Any]:
    """A function that asks Ray for one more actor.

    Actors are spread: a node that is lost takes few workers with it, and each has the more of its node's memory
    bandwidth, which is what scoring on a CPU waits for.
    """
    import ray

    remote = ray.remote(
        num_cpus=demand.cpus,
        num_gpus=demand.gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": _environment(config, demand)},
    )(Actor)
    stored = ray.put(config.with_gpus(demand.gpus))
    return lambda: remote.remote(stored)


def _environment(config: Config, demand: Demand) -> dict[str, str]:
    """Of a worker's process. Two torch processes that each take all cores run many times slower than one."""
    threads = str(config.threads or demand.cpus)
    found = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **TELEMETRY_OFF}
    if not demand.gpus:
        found["CUDA_VISIBLE_DEVICES"] = ""  # it asked for none, so it does not crowd onto the node's first
    return found
