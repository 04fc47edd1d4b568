"""Devices of a worker: selection, and the end of the process after an unrecoverable CUDA error."""

import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evosearch.errors import CandidateError, CheckpointError, Problems, SearchError, SpecError
from evosearch.execution import actor as actors
from evosearch.execution.actor import Actor
from evosearch.execution.demand import Demand
from evosearch.execution.device import device_of, unrecoverable
from evosearch.execution.local import LocalExecutor
from evosearch.execution.worker_config import WorkerConfig
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job, Outcome
from evosearch.setup.executors import worker_config
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec
from evosearch.umask import private_files

ASSERTED = "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in …\nCompile with …"


def config(device: str) -> WorkerConfig:
    return WorkerConfig(recipe={}, suite={}, cache=Path("cache"), device=device)


def test_a_worker_with_a_gpu_never_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(SpecError) as caught:
        device_of(config("auto").with_gpus(0.5).device)
    assert caught.value.where == "workers.device"
    assert f"this worker must score on a GPU, but torch sees none on {socket.gethostname()}" in str(caught.value)
    assert "Check `nvidia-smi`" in str(caught.value)
    # An explicit `cpu` is kept, even on a node that declares GPUs
    assert device_of(config("cpu").with_gpus(1.0).device) == torch.device("cpu")
    assert device_of(config("auto").with_gpus(0.0).device) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto") == device_of("cuda") == torch.device("cuda", 0)


def test_the_pool_configures_workers_for_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray reads it only once, at import; later tests depend on it
    import ray

    stored: list[Any] = []
    monkeypatch.setattr(ray, "put", stored.append)
    for gpus in (0.0, 1.0):
        actors.actor_maker(print, config("auto"), Demand(1, gpus))
    assert [one.device for one in stored] == ["auto", "cuda"]


def broken(config: WorkerConfig) -> Any:
    """Fail to build a worker, with several problems whose cause cannot be pickled."""
    found = [CheckpointError("a", "disk full"), CheckpointError("b", "damaged", "safetensors", "Fetch it again")]
    try:
        raise RuntimeError("cause", lambda: None)
    except RuntimeError as exc:
        raise Problems("night.yaml", found) from exc


def test_all_problems_of_a_worker_reach_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    from ray import cloudpickle

    with private_files():  # an actor sets the umask of its process
        found = Actor(broken, config("cpu")).start()
    assert isinstance(found, Problems)
    for copy in (pickle.loads(pickle.dumps(found)), cloudpickle.loads(cloudpickle.dumps(found))):
        assert isinstance(copy, Problems)
        assert str(copy) == "night.yaml: 2 problems:\n1. a: disk full.\n2. b: damaged. safetensors. Fetch it again."
        assert copy.__cause__ is None


def test_unrecoverable_cuda_errors_are_recognized() -> None:
    assert unrecoverable(torch.AcceleratorError(ASSERTED)) == "CUDA error: device-side assert triggered"
    assert unrecoverable(torch.AcceleratorError("uncorrectable ECC error")) == "uncorrectable ECC error"
    assert unrecoverable(RuntimeError("CUDA error: an illegal memory access was encountered")) is not None
    outer = CandidateError("score", "its scores are not finite")
    outer.__cause__ = torch.AcceleratorError(ASSERTED)
    assert unrecoverable(outer) == "CUDA error: device-side assert triggered"
    for harmless in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("CUDA error: as a candidate's text may say"),
    ):
        assert unrecoverable(harmless) is None


def test_an_unrecoverable_cuda_error_ends_the_worker(
    world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(load_spec(world()), Silent())
    executor = LocalExecutor(worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32"))
    recipe = prepared.space.fill(prepared.space.initial())
    job = Job("1@search", recipe, prepared.batches["search"])

    def fail(*given: Any) -> None:
        raise torch.AcceleratorError(ASSERTED)

    monkeypatch.setattr(executor.worker.scorer, "score", fail)
    executor.submit(job)
    with pytest.raises(SearchError) as caught:
        executor.wait(1.0)
    said = f"{executor.worker.name}: unrecoverable CUDA error: device-side assert triggered"
    assert str(caught.value) == said
    monkeypatch.undo()
    outcome: Outcome = executor.worker.run(job)
    assert outcome.card is not None
