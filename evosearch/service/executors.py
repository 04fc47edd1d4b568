"""From the spec's `workers` to something that scores."""

import os

from evosearch.checkpoints.references import default_cache
from evosearch.errors import SpecError
from evosearch.evaluation.loglikelihood import ScoreOptions
from evosearch.evaluation.suite import Suite
from evosearch.execution.local import LocalExecutor
from evosearch.execution.worker import WorkerConfig
from evosearch.search.ports import Executor
from evosearch.search.watching import Watcher
from evosearch.service.models import Models
from evosearch.service.prepare import Prepared
from evosearch.service.spec import WorkersConfig


def worker_config(workers: WorkersConfig, models: Models, suite: Suite, out_dtype: str, count: int = 1) -> WorkerConfig:
    """What each worker is told: names and plain data."""
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
    )


def make_executor(workers: WorkersConfig, prepared: Prepared, watcher: Watcher) -> Executor:
    """The executor a spec asks for.

    Raises:
        SpecError: the cluster cannot be reached, or more is asked for than this machine has.
    """
    count, gpus = worker_count(workers)
    config = worker_config(workers, prepared.models, prepared.suite, prepared.example.output_dtype, count)
    if workers.executor == "local":
        return LocalExecutor(config, watcher.preparing, prepared.harness)
    from evosearch.execution.ray_pool import RayExecutor, RayOptions

    options = RayOptions(count, config.threads, gpus, workers.address)
    return RayExecutor(config, options, watcher.note)


def worker_count(workers: WorkersConfig) -> tuple[int, float]:
    """How many workers, and how many GPUs each has."""
    import torch

    cuda = torch.cuda.is_available()
    if workers.device == "cuda" and not cuda and not workers.address:
        raise SpecError("workers.device", "got 'cuda', and this machine has no GPU", "auto, or cpu")
    if workers.address and workers.gpus_per_worker is None and not cuda and workers.device != "cpu":
        what = "missing, and this machine has no GPU to go by"
        raise SpecError("workers.gpus_per_worker", what, "How many GPUs of the cluster each worker gets; 0 for CPUs")
    here = 0 if workers.device == "cpu" else torch.cuda.device_count()
    gpus = workers.gpus_per_worker if workers.gpus_per_worker is not None else float(here > 0)
    if workers.executor == "local":
        return 1, gpus
    if gpus and not here and not workers.address:
        raise SpecError("workers.gpus_per_worker", f"got {gpus:g}, and this machine has no GPU", "0, or an address")
    if workers.count != "auto":
        return workers.count, gpus
    if workers.address:
        raise SpecError("workers.count", "auto needs a machine to look at", next="Say how many workers the cluster has")
    return (max(1, int(here / gpus)) if gpus else max(1, _cores() // 2)), gpus


def _cores() -> int:
    return len(os.sched_getaffinity(0))
