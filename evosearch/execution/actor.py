"""Ray actors around workers. Recipes and scores travel between pool and actor, never weights or documents.

An item batch (thousands of document hashes) is the same for every candidate: it is put into Ray's object store once,
fetched by each worker once, and left out of jobs and outcomes.
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

BATCHES = 64  # kept by each worker and in the store: minibatches and splits of one search


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
        """Return the configuration of workers with so many GPUs each, which may depend on the cluster."""


Build = Callable[[Any], JobRunner]  # builds a worker from its configuration; picklable, so a class or a function


@dataclass(frozen=True)
class Place:
    """Location of a worker."""

    node: str  # Ray's node id
    name: str  # host:pid


class Actor:
    """Actor with one worker. It is built by `start`, not by the constructor, so that its errors come back as data."""

    def __init__(self, build: Build, config: Config) -> None:
        self._build, self._config = build, config
        self._worker: JobRunner | None = None
        self._batches: OrderedDict[str, ItemBatch] = OrderedDict()

    def place(self) -> Place:
        """Return where this actor runs."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return Place(node, f"{socket.gethostname()}:{os.getpid()}")

    def start(self) -> InputError | None:
        """Build the worker; return what prevents that."""
        try:
            self._worker = self._build(self._config)
        except InputError as exc:
            return exc  # pickled by its fields, without cause and traceback
        return None

    def ping(self) -> None:
        """Return once the process is alive and has finished earlier calls."""

    def run(self, job: Job, digest: str, batch: list[Any]) -> Outcome:
        """Score a job whose batch is left out.

        Args:
            job: A job with an empty batch.
            digest: Digest of its batch.
            batch: One reference to the batch, in a list, so that Ray does not fetch it for every call.
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
    """Item batches in Ray's object store, by digest; the pool's side."""

    def __init__(self) -> None:
        self._references: OrderedDict[str, Any] = OrderedDict()

    def packed(self, job: Job) -> tuple[Job, str, list[Any]]:
        """Return the arguments of `Actor.run`."""
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

    Actors are spread over nodes: a lost node then takes few workers with it, and each worker gets more of its node's
    memory bandwidth, the bottleneck of scoring on CPUs.
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
    """Return the environment of a worker's process. Torch processes that compete for cores run many times slower."""
    threads = str(config.threads or demand.cpus)
    found = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **TELEMETRY_OFF}
    if not demand.gpus:
        found["CUDA_VISIBLE_DEVICES"] = ""  # otherwise it would use the node's first GPU, which is not its own
    return found
