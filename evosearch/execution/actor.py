"""Ray actors that wrap workers. Pool and actors exchange recipes and scores, never weights or documents.

An item batch (thousands of document hashes) is the same for all candidates. It is put into Ray's object store once,
fetched once by each worker, and left out of jobs and outcomes.
"""

import os
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from evosearch.environment import CONTROLLER_SECRETS, TELEMETRY_OFF
from evosearch.errors import InputError
from evosearch.evaluation.types import ItemBatch
from evosearch.execution.demand import Demand
from evosearch.search.protocols import Job, Outcome
from evosearch.umask import set_umask

BATCHES = 64  # cached by each worker and in the object store: minibatches and splits of one search


class JobRunner(Protocol):
    """Scores jobs one after another inside an actor; see `Worker`."""

    name: str

    def run(self, job: Job) -> Outcome:
        """Score one job."""


class Config(Protocol):
    """Picklable configuration of a worker; see `WorkerConfig`."""

    @property
    def threads(self) -> int:
        """CPU threads of one worker."""

    @property
    def cache(self) -> Path:
        """Folder of files that are prepared once per machine."""

    def with_gpus(self, gpus: float) -> Any:
        """Return the configuration for workers that get this many GPUs each."""


Build = Callable[[Any], JobRunner]  # builds a worker from its configuration; must be picklable: a class or a function


@dataclass(frozen=True)
class Location:
    """Location of a worker."""

    node: str  # Ray's node id
    name: str  # host:pid


class Actor:
    """Actor with one worker. `start` builds the worker instead of the constructor, so that errors are return values."""

    def __init__(self, build: Build, config: Config) -> None:
        self._build, self._config = build, config
        self._worker: JobRunner | None = None
        self._batches: OrderedDict[str, ItemBatch] = OrderedDict()

    def locate(self) -> Location:
        """Return the location of this actor."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return Location(node, f"{socket.gethostname()}:{os.getpid()}")

    def start(self) -> InputError | None:
        """Build the worker; return the error if that fails."""
        try:
            set_umask()  # of this process, which a cluster's node started with its own
            self._worker = self._build(self._config)
        except InputError as exc:
            return exc  # pickles only its fields, without cause and traceback
        return None

    def ping(self) -> None:
        """Return once the process is alive and has finished earlier calls."""

    def run(self, job: Job, digest: str, batch: list[Any]) -> Outcome:
        """Score a job.

        Args:
            job: A job with an empty batch.
            digest: Digest of its batch.
            batch: Reference to the batch, in a list of one, so that Ray does not fetch it on every call.
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
    """The pool's references to item batches in Ray's object store, by digest."""

    def __init__(self) -> None:
        self._references: OrderedDict[str, Any] = OrderedDict()

    def arguments(self, job: Job) -> tuple[Job, str, list[Any]]:
        """Return the arguments of `Actor.run` for a job."""
        import ray

        digest = job.batch.digest
        if digest not in self._references:
            self._references[digest] = ray.put(job.batch)
            if len(self._references) > BATCHES:
                self._references.popitem(last=False)
        self._references.move_to_end(digest)
        return replace(job, batch=ItemBatch(job.batch.split, ())), digest, [self._references[digest]]


def actor_maker(build: Build, config: Config, demand: Demand) -> Callable[[], Any]:
    """Return a function that requests one more actor from Ray.

    Actors are spread over nodes, so that a lost node costs few workers, and each worker gets more of its node's memory
    bandwidth, the bottleneck when scoring on CPUs.
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
    return lambda: remote.remote(build, stored)


def _environment(config: Config, demand: Demand) -> dict[str, str]:
    """Return the environment of a worker process. Threads are limited: torch is very slow on oversubscribed cores."""
    threads = str(config.threads or demand.cpus)
    found = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **TELEMETRY_OFF}
    found |= dict.fromkeys(CONTROLLER_SECRETS, "")  # task code of a suite runs in workers
    if not demand.gpus:
        found["CUDA_VISIBLE_DEVICES"] = ""  # otherwise the worker would use the node's first GPU without reserving it
    return found
