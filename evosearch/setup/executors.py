"""Executors and worker configs, built from a spec's `workers`."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from evosearch.errors import SpecError
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.suites.suite import Suite
from evosearch.execution.ray_cluster import address_of
from evosearch.execution.worker_config import WorkerConfig
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Executor
from evosearch.spec.config import WorkersConfig
from evosearch.spec.portable import portable

if TYPE_CHECKING:
    from evosearch.setup.models import Models
    from evosearch.setup.prepare import Prepared

THREADS = 2  # CPU threads of a cluster worker, and the cores it reserves; few, so that any GPU node has them


def worker_config(
    workers: WorkersConfig, models: "Models", suite: Suite, out_dtype: str, count: int = 1
) -> WorkerConfig:
    """The config of one worker: names and plain data.

    Args:
        workers: The spec's `workers`.
        models: The models that candidates are made of.
        suite: The suite that candidates are scored on.
        out_dtype: The type that merged weights are rounded to.
        count: Number of workers on this machine, which share its cores.
    """
    from evosearch.checkpoints.references import default_cache  # imports torch

    cached = workers.cached_tokens or ScoreOptions.cached_tokens
    options = ScoreOptions(batch_tokens=workers.batch_tokens, cached_tokens=cached)
    return WorkerConfig(
        recipe=models.recipe.to_dict(),
        suite=suite.model_dump(mode="json"),
        cache=default_cache(),
        out_dtype=out_dtype,
        device=workers.device,
        threads=workers.threads or max(1, _cores() // count),
        options=options,
        allow_pickle=models.opener.allow_pickle,
        also=models.also,
        recipes=models.opener.nested,
        inputs=models.inputs,
        files=models.files,
        samples=models.samples,
    )


def make_executor(workers: WorkersConfig, prepared: "Prepared", watcher: Watcher) -> Executor:
    """Build the executor of a spec.

    Raises:
        SpecError: The cluster cannot be reached, or this machine has too few GPUs.
    """
    count, gpus = worker_count(workers)
    config = worker_config(workers, prepared.models, prepared.suite, prepared.example.output_dtype, count or 1)
    config = replace(config, gpu_share=gpus or 1.0)
    if workers.executor == "local":
        from evosearch.execution.local import LocalExecutor

        return LocalExecutor(config, watcher.preparing, prepared.harness)
    from evosearch.execution.ray_pool import RayExecutor, RayOptions
    from evosearch.execution.worker import Worker

    config = replace(config, suite=portable(config.suite))
    if cluster_of(workers) and workers.threads is None:  # its nodes may have other cores than this machine
        config = replace(config, threads=1 if gpus and gpus < 1.0 else THREADS)
    fill = prepared.optimizer.asynchronous
    options = RayOptions(count, config.threads, gpus, cluster_of(workers), fill)
    return RayExecutor(Worker, config, options, watcher.note)


def cluster_of(workers: WorkersConfig) -> str | None:
    """Address of the cluster that workers run on: the spec's, or the one this Ray job runs on; None for no cluster."""
    return None if workers.executor == "local" else address_of(workers.address)


def worker_count(workers: WorkersConfig) -> tuple[int | None, float | None]:
    """Number of workers, and GPUs of each.

    On a cluster, None means as many workers as fit, and one GPU each if any node has GPUs.

    Raises:
        SpecError: This machine has too few GPUs.
    """
    import torch

    count = None if workers.count == "auto" else workers.count
    if cluster_of(workers):
        return count, 0.0 if workers.device == "cpu" else workers.gpus_per_worker
    if workers.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("workers.device", "got 'cuda', and this machine has no GPU", "auto, or cpu")
    here = 0 if workers.device == "cpu" else torch.cuda.device_count()
    gpus = workers.gpus_per_worker if workers.gpus_per_worker is not None else float(here > 0)
    if workers.executor == "local":
        return 1, gpus
    if gpus and not here:
        raise SpecError("workers.gpus_per_worker", f"got {gpus:g}, and this machine has no GPU", "0, or an address")
    if gpus > here:
        raise SpecError("workers.gpus_per_worker", f"got {gpus:g}, and this machine has {here}", f"At most {here}")
    if count is None:
        count = max(1, int(here / gpus)) if gpus else max(1, _cores() // 2)
    return count, gpus


def _cores() -> int:
    return len(os.sched_getaffinity(0))
