"""The pool under faults, on a real Ray cluster of several nodes: each job has one outcome, with reasons recorded.

Workers are light (`benchmarks/_light_workers`), since the pool is tested here and not scoring. One search with models
and a ledger is at the end.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import SearchError, SpecError
from evosearch.execution import placement, ray_pool, ray_settings
from evosearch.execution.deadlines import Timeouts
from evosearch.execution.ray_pool import RayExecutor, RayOptions
from evosearch.execution.ray_settings import secure_environment
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Progress, Silent
from evosearch.search.protocols import Job, Outcome
from evosearch.service.run import run
from evosearch.spec.spec import load_spec

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.ray
World = Callable[..., Path]
LOOPBACK = {"node_ip_address": "127.0.0.1", "num_cpus": 2, "num_gpus": 2, "object_store_memory": 80_000_000}


class Nodes:
    """A Ray head without resources, and nodes that declare two CPUs and two GPUs."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = LOOPBACK | {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.add()
        self.add()
        import ray

        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR", namespace="evosearch")

    def add(self) -> Any:
        return self.cluster.add_node(**LOOPBACK)

    def of(self, outcome_worker: str, executor: RayExecutor) -> Any:
        """Return the node of a worker."""
        member = next(one for one in executor._members.all() if one.location.name == outcome_worker)
        return next(node for node in self.cluster.worker_nodes if node.node_id == member.location.node)


def patiently(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Extend the 30 s that Ray gives a node to start, which is too short on busy cores."""

    def get(*arguments: Any) -> Any:
        deadline = time.monotonic() + 400.0
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return get


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(ROOT))  # so that the nodes' workers find `benchmarks`
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
            patch.setenv(name, "")  # for monkeypatch to restore it, although `secure_environment` sets it
            patch.delenv(name)
        secure_environment(tmp_path_factory.mktemp("ray") / "token")
        ray_settings.load_ray()
        import ray
        from ray._private import services

        patch.setattr(services, "get_node", patiently(services.get_node))
        with ray_settings.on_loopback():
            nodes = Nodes()
            yield nodes
            ray.shutdown()
            nodes.cluster.shutdown()


@pytest.fixture
def pool(nodes: Nodes, tmp_path: Path) -> Iterator[Callable[..., RayExecutor]]:
    """`pool(RayOptions(…), seconds=…, acts=…)` → a pool of light workers; closed at the end."""
    from benchmarks._light_workers.light import Light
    from benchmarks._simulated.world import World as Problem

    made: list[RayExecutor] = []

    def make(options: RayOptions, notes: list[str] | None = None, **light: Any) -> RayExecutor:
        config = Light(tmp_path, Problem(models=2, layers=4, items=20), log=tmp_path / "begun", **light)
        made.append(RayExecutor(Light.worker, config, options, (notes if notes is not None else []).append))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def jobs(count: int) -> list[Job]:
    from benchmarks._simulated.world import World as Problem

    world = Problem(models=2, layers=4, items=20)
    space = world.space
    return [Job(f"{i}@search", space.fill(space.initial()), world.batch) for i in range(count)]


def until(executor: RayExecutor, count: int, seconds: float = 400.0) -> list[Outcome]:
    found: list[Outcome] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += executor.wait(1.0)
    return found


def each_once(outcomes: list[Outcome], work: list[Job]) -> dict[str, Outcome]:
    """Check that every job has exactly one outcome; return them by job id."""
    assert sorted(outcome.job.id for outcome in outcomes) == sorted(job.id for job in work)
    assert all(len(outcome.job.batch) == 40 for outcome in outcomes)  # jobs come back with their batch
    assert all((outcome.card is None) != (outcome.failure is None) for outcome in outcomes)
    return {outcome.job.id: outcome for outcome in outcomes}


def test_a_killing_candidate_is_quarantined_and_a_hanging_one_is_retried(
    pool: Callable[..., RayExecutor],
) -> None:
    notes: list[str] = []
    timeouts = Timeouts(first=60.0, floor=20.0, factor=1.0)  # longer than pauses on a busy machine
    acts = {"2@search": "die", "5@search": "refuse", "7@search": "hang once", "9@search": "raise once"}
    executor = pool(RayOptions(3, gpus_per_worker=1, timeouts=timeouts), notes, acts=acts)
    work = jobs(24)
    for job in work:
        executor.submit(job)
    found = each_once(until(executor, len(work)), work)
    assert sorted(name for name, outcome in found.items() if outcome.card is None) == ["2@search", "5@search"]
    poison = found["2@search"]
    assert poison.failure is not None
    assert poison.failure.stage == "worker"
    assert poison.failure.reason.startswith(
        "quarantined: 2 workers were lost while scoring it; the last: the worker died: "
    )
    assert [fault.reason.startswith("the worker died: ") for fault in poison.retries] == [True]
    refused = found["5@search"]
    assert refused.failure is not None
    assert (refused.failure.reason, [fault.reason for fault in refused.retries]) == (
        "configured to refuse",
        2 * ["configured to refuse"],
    )
    (hung,) = found["7@search"].retries
    assert hung.reason.startswith("no answer after ")
    assert "(typical: " in hung.reason
    (raised,) = found["9@search"].retries
    assert raised.reason == "the worker raised RuntimeError: configured to raise"
    assert any("2@search: the worker died" in text for text in notes)
    assert executor._deadlines.limit(40) == 20.0


def test_workers_that_die_during_start_are_replaced_until_the_limit(
    pool: Callable[..., RayExecutor], tmp_path: Path
) -> None:
    notes: list[str] = []
    weak = tmp_path / "weak"
    weak.mkdir()
    (weak / "1").touch()
    executor = pool(RayOptions(1, gpus_per_worker=1), notes, weak=weak)
    work = jobs(3)
    for job in work:
        executor.submit(job)
    assert all(outcome.card and not outcome.retries for outcome in each_once(until(executor, 3), work).values())
    assert any(text.startswith("a worker was lost during start: the worker died: ") for text in notes)
    executor.close()
    for index in range(3):
        (weak / f"{index}").touch()
    executor = pool(RayOptions(1, gpus_per_worker=1), weak=weak)
    executor.submit(work[0])
    with pytest.raises(SearchError, match="workers die during start: the worker died: "):
        until(executor, 1)


def test_infeasible_workers_are_rejected_and_others_wait_for_resources(
    pool: Callable[..., RayExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "REFUSE_S", 2.0)
    monkeypatch.setattr(placement, "WARN_S", 2.0)
    executor = pool(RayOptions(1, gpus_per_worker=4))
    executor.submit(jobs(1)[0])
    with pytest.raises(SpecError, match=r"workers\.gpus_per_worker: got 4: a worker needs 4 GPU, 1 CPU, but no node"):
        until(executor, 1)
    executor.close()
    notes: list[str] = []
    executor = pool(RayOptions(3, gpus_per_worker=2), notes)  # one fits on each of the two nodes
    executor.submit(jobs(1)[0])
    assert len(until(executor, 1)) == 1
    missing = "1 of the requested workers are waiting for free resources"
    waiting = f"{missing}: each takes 2 GPU, 1 CPU; the cluster has 4 GPU, 4 CPU, free: "
    deadline = time.monotonic() + 400.0
    while not any(text.startswith(waiting) for text in notes) and time.monotonic() < deadline:
        executor.submit(jobs(1)[0])
        until(executor, 1)
        time.sleep(0.5)
    assert any(text.startswith(waiting) for text in notes), notes


def test_a_wrong_token_is_reported_within_seconds(nodes: Nodes, tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
import ray
from evosearch.execution import ray_cluster
ray_cluster.REACH_S = 40.0  # the error is immediate, but this process may have to wait for a core
began = time.monotonic()
try:
    ray_cluster.connect(Path("token"), sys.argv[1], None)
except ray_cluster.SpecError as exc:
    print(exc if time.monotonic() - began < 60 else "too late")
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN_PATH"}
    command = [sys.executable, "-c", code, nodes.cluster.address]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
        env=environment | {"RAY_AUTH_TOKEN": 64 * "b", "EVOSEARCH_HOSTS": f"ray://{nodes.cluster.address}"},
    )
    assert f"workers.address: {nodes.cluster.address}: the cluster refuses the token" in done.stdout, done.stderr


def test_an_automatic_pool_follows_nodes_as_they_come_and_go(nodes: Nodes, pool: Callable[..., RayExecutor]) -> None:
    executor = pool(RayOptions(None, gpus_per_worker=None, fill=True), seconds=0.3)
    assert executor._demand.gpus == 1.0  # because nodes have GPUs
    done: list[Outcome] = []
    work: list[Job] = []

    def work_until(enough: Callable[[], bool], seconds: float = 400.0) -> None:
        deadline = time.monotonic() + seconds
        while not enough() and time.monotonic() < deadline:
            while len(work) - len(done) < executor.slots + 1:
                work.append(jobs(len(work) + 1)[-1])
                executor.submit(work[-1])
            done.extend(executor.wait(1.0))
        assert enough()

    def reasons() -> list[str]:
        return [fault.reason for outcome in done for fault in outcome.retries]

    work_until(lambda: executor.slots == 4)
    assert len(executor._members.placing) <= 8  # the demand that an autoscaler sees is bounded
    third = nodes.add()
    work_until(lambda: executor.slots == 6)
    nodes.cluster.remove_node(third)  # a graceful removal
    work_until(lambda: bool(reasons()) and executor.slots == 4)
    said = len(reasons())
    second = nodes.of(done[-1].worker, executor)
    nodes.cluster.remove_node(second, allow_graceful=False)  # as in a power failure
    work_until(lambda: len(reasons()) > said and executor.slots == 2)
    done += until(executor, len(work) - len(done))
    found = each_once(done, work)
    assert all(outcome.card is not None for outcome in found.values())
    assert 2 <= len(reasons()) <= 4  # both lost nodes had two workers
    assert all(reason.startswith("its node was lost: ") for reason in reasons()), reasons()
    nodes.add()


class Saboteur(Silent):
    """Watcher that kills a worker once some candidates are scored."""

    def __init__(self, ledger: Path) -> None:
        self._ledger, self.killed = ledger, ""

    def update(self, progress: Progress) -> None:
        if progress.stage != "search" or progress.done < 3 or self.killed:
            return
        with Ledger.open(f"sqlite:///{self._ledger}", read_only=True) as ledger:
            info = ledger.search_by_name("night")
            assert info is not None
            worker = [event.payload["worker"] for event in ledger.events(info.search_id) if event.type == "scored"][-1]
        os.kill(int(worker.rsplit(":", 1)[1]), signal.SIGKILL)
        self.killed = worker


def test_a_search_with_models_and_a_ledger_survives_the_loss_of_a_worker(nodes: Nodes, world: World) -> None:
    workers = {"executor": "ray", "count": 2, "threads": 1, "gpus_per_worker": 0}
    optimizer = {"name": "cma_es", "population": 4, "sigma": 0.2, "seed": 1, "asynchronous": True}
    spec = world("night", workers=workers, optimizer=optimizer, budget={"candidates": 12})
    run_dir = load_spec(spec).run_dir
    path = Path(str(run_dir.ledger).removeprefix("sqlite:///"))
    saboteur = Saboteur(path)
    report = run(spec, saboteur)
    assert report is not None
    assert saboteur.killed
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name("night")
        assert info is not None
        events = list(ledger.events(info.search_id))
    proposed = [event.payload["candidate"] for event in events if event.type == "asked"]
    scored = [event.payload for event in events if event.type == "scored" and event.payload["split"] == "search"]
    candidates = [payload["candidate"] for payload in scored if payload["candidate"] in proposed]
    assert sorted(candidates) == sorted(set(proposed))
    assert len(proposed) == 12
    assert {payload["worker"] for payload in scored} > {saboteur.killed}
    retried = [event.payload for event in events if event.type == "retried"]
    assert retried, "the killed worker had a job"
    assert all(payload["reason"].startswith("the worker died: ") for payload in retried)


def test_a_lost_cluster_ends_the_search_with_advice_on_resuming(
    nodes: Nodes, pool: Callable[..., RayExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "GONE_S", 3.0)
    executor = pool(RayOptions(1, gpus_per_worker=1), acts={"1@search": "hang"})
    for job in jobs(2):
        executor.submit(job)
    assert len(until(executor, 1)) == 1
    nodes.cluster.head_node.kill_gcs_server()  # irreversible, so this must be the last test of the file
    with pytest.raises(SearchError) as caught:
        until(executor, 1, 90.0)
    assert "its head node has not answered for" in str(caught.value)
    assert "Everything scored is in the ledger. Run the same command to resume" in str(caught.value)
