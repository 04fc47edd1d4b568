"""The Ray executor on a real local Ray: parallel, secured, and robust to a killed worker."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evosearch.environment import CONTROLLER_SECRETS, TELEMETRY_OFF
from evosearch.errors import CheckpointError
from evosearch.execution.ray_pool import RayExecutor, RayOptions
from evosearch.execution.ray_settings import secure_environment
from evosearch.execution.worker import Worker
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job, Outcome
from evosearch.search.state import SearchState
from evosearch.service.run import run
from evosearch.setup.executors import worker_config
from evosearch.setup.prepare import Prepared, prepare
from evosearch.spec.spec import load_spec

pytestmark = pytest.mark.ray
World = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Ray for all tests of this file, started as the executor starts it."""
    from evosearch.execution.ray_cluster import start_local

    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", *TELEMETRY_OFF):
            patch.setenv(name, "")  # for monkeypatch to restore it, although `start_local` sets it
            patch.delenv(name)
        for name in CONTROLLER_SECRETS:
            patch.setenv(name, "canary-5d11")
        start_local(tmp_path_factory.mktemp("ray") / "token", cpus=2)
        import ray

        yield ray
        ray.shutdown()


@pytest.fixture
def prepared(world: World) -> Prepared:
    return prepare(load_spec(world()), Silent())


def pool(prepared: Prepared, count: int, notes: list[str] | None = None) -> RayExecutor:
    config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32", 2)
    return RayExecutor(Worker, config, RayOptions(count), (notes if notes is not None else []).append)


def jobs(prepared: Prepared, count: int) -> list[Job]:
    space, batch = prepared.space, prepared.batches["search"]
    return [Job(f"{i}@search", space.fill(space.with_weight((0.1 * i, 0.3))), batch) for i in range(count)]


def collect(executor: RayExecutor, count: int, seconds: float = 400.0) -> list[Outcome]:
    """Wait for a number of outcomes; workers may take minutes to start on a busy machine."""
    found: list[Outcome] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += executor.wait(1.0)
    return found


def test_two_workers_score_every_job_once_with_the_scores_of_one_process(cluster: Any, prepared: Prepared) -> None:
    from evosearch.execution.local import LocalExecutor

    executor = pool(prepared, 2)
    work: list[Job] = []
    outcomes: list[Outcome] = []
    # Until the second worker has started too
    while len({outcome.worker for outcome in outcomes}) < 2 and len(work) < 2000:
        more = jobs(prepared, len(work) + 8)[len(work) :]
        work += more
        for job in more:
            executor.submit(job)
        outcomes += collect(executor, len(more))
    executor.close()
    assert sorted(outcome.job.id for outcome in outcomes) == sorted(job.id for job in work)
    assert len({outcome.worker for outcome in outcomes}) == 2
    work, outcomes = work[-8:], [outcome for outcome in outcomes if outcome.job in work[-8:]]
    config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32", 2)
    local = LocalExecutor(config)
    for job in work:
        local.submit(job)
    here = {outcome.job.id: outcome.card for _ in work for outcome in local.wait(1.0)}
    for outcome in outcomes:
        card, same = outcome.card, here[outcome.job.id]
        assert card is not None
        assert same is not None
        assert card.fitness.value == pytest.approx(same.fitness.value, rel=1e-6)


def test_a_killed_worker_is_replaced_and_its_job_retried(cluster: Any, prepared: Prepared) -> None:
    notes: list[str] = []
    executor = pool(prepared, 1, notes)
    first, second, third = jobs(prepared, 3)
    executor.submit(first)
    (outcome,) = collect(executor, 1)
    pid = int(outcome.worker.rsplit(":", 1)[1])
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"\0PGPASSWORD=\0" in environment
    assert b"canary-5d11" not in environment, "workers get no secrets of the ledger and the tracking store"
    os.kill(pid, signal.SIGSTOP)  # so that the worker dies with a job
    executor.submit(second)
    executor.submit(third)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    outcomes = collect(executor, 2)
    executor.close()
    assert sorted(outcome.job.id for outcome in outcomes) == [second.id, third.id]
    assert all(outcome.card is not None for outcome in outcomes)
    retried = next(outcome for outcome in outcomes if outcome.job.id == second.id)
    assert [fault.fault for fault in retried.retries] == ["worker"]
    assert int(retried.worker.rsplit(":", 1)[1]) != pid
    assert any("scoring it again on another worker" in text for text in notes)


def test_input_errors_of_workers_are_raised_unchanged(cluster: Any, prepared: Prepared, tmp_path: Path) -> None:
    gone = {"merge_method": "linear", "models": [{"model": str(tmp_path / "gone")}]}
    config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32", 2)
    config = replace(config, recipe=gone)
    executor = RayExecutor(Worker, config, RayOptions(1))
    executor.submit(jobs(prepared, 1)[0])
    with pytest.raises(CheckpointError, match="gone"):
        collect(executor, 1)
    executor.close()


def test_a_search_on_minibatches_has_the_same_estimates_with_ray(cluster: Any, world: World) -> None:
    estimates = {}
    optimizer = {"name": "cma_es", "population": 4, "sigma": 0.2, "seed": 1, "start": "best_baseline"}
    for kind in ("local", "ray"):
        workers = {"executor": kind, "count": 1, "threads": 1}
        changes = {"optimizer": optimizer, "budget": {"candidates": 8}, "baselines": {"scales": [0.5]}}
        spec = world(kind, search_minibatches=2, workers=workers, **changes)
        run(spec, Silent())
        run_dir = load_spec(spec).run_dir
        with Ledger.open(run_dir.ledger, read_only=True) as ledger:
            info = ledger.search_by_name(run_dir.name)
            assert info is not None
            state = SearchState.from_events(ledger.events(info.search_id))
            workers_seen = {e.payload["worker"] for e in ledger.events(info.search_id) if e.type == "scored"}
        here = f":{os.getpid()}"
        assert all(worker.endswith(here) == (kind == "local") for worker in workers_seen)
        assert sorted(minibatch for _, minibatch in state.samples) == [0] * 4 + [1] * 4
        estimates[kind] = {name: found.fitness.value for name, found in state.reported.items()}
    assert len(estimates["ray"]) == 8
    assert estimates["ray"] == pytest.approx(estimates["local"], rel=1e-6)


def test_workers_compute_statistics_of_models_as_one_process_does(cluster: Any, world: World) -> None:
    models = [{"model": f"./expert{i}", "parameters": {"weight": {"low": 0.1, "high": 1.5}}} for i in (1, 2)]
    sample = {"suite": "suite.yaml", "task": "generate", "documents": 6}
    recipe = {"merge_method": "regmean", "models": models, "sample": sample}
    optimizer = {"name": "cma_es", "population": 4, "sigma": 0.2, "seed": 1, "start": "init"}
    fitness = {}
    for kind in ("local", "ray"):
        workers = {"executor": kind, "count": 1, "threads": 1}
        changes = {"optimizer": optimizer, "budget": {"candidates": 4}, "baselines": {"scales": []}}
        spec = world(kind, recipe=recipe, workers=workers, **changes)
        run(spec, Silent())
        run_dir = load_spec(spec).run_dir
        with Ledger.open(run_dir.ledger, read_only=True) as ledger:
            info = ledger.search_by_name(run_dir.name)
            assert info is not None
            state = SearchState.from_events(ledger.events(info.search_id))
        fitness[kind] = {name: card.fitness.value for (name, split), card in state.cards.items() if split == "search"}
    assert len(fitness["ray"]) >= 4
    assert fitness["ray"] == pytest.approx(fitness["local"], rel=1e-6)


JOIN = """
import os, sys
from pathlib import Path
from evosearch.execution import ray_cluster
ray_cluster.REACH_S = 120.0  # the error is immediate, but this process may have to wait for a core
try:
    ray_cluster.connect(Path("token"), sys.argv[1], None)
    print("connected")
except ray_cluster.SpecError as exc:
    print(exc)
sys.stdout.flush()
os._exit(0)  # without waiting for Ray's threads
"""


def test_a_local_ray_requires_its_token_and_sends_no_telemetry(cluster: Any, tmp_path: Path) -> None:
    address = cluster.get_runtime_context().gcs_address
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    named = {"RAY_AUTH_MODE": "token", "EVOSEARCH_HOSTS": f"ray://{address}"}

    def join(**token: str) -> str:
        command, environment = [sys.executable, "-c", JOIN, address], kept | named | token
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"workers.address: {address}: the cluster refuses the token" in join(RAY_AUTH_TOKEN=64 * "b")
    assert join(RAY_AUTH_TOKEN_PATH=os.environ["RAY_AUTH_TOKEN_PATH"]) == "connected\n"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_token_is_created_once_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # for monkeypatch to restore it, although `secure_environment` sets it
        monkeypatch.delenv(name)
    file = tmp_path / "folder" / "token"
    secure_environment(file)
    token = file.read_text()
    assert len(token) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    secure_environment(file)
    assert file.read_text() == token
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file)
