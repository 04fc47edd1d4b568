"""The pool under lost contact, hanging workers and failed builds, with scripted answers in place of Ray."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evosearch.errors import CheckpointError, InputError, SearchError
from evosearch.evaluation.types import ItemBatch
from evosearch.execution import placement, ray_pool
from evosearch.execution.actor import Location
from evosearch.execution.deadlines import Timeouts
from evosearch.execution.ray_cluster import Cluster
from evosearch.execution.ray_pool import RayExecutor, RayOptions
from evosearch.search.protocols import Failure, Job, Outcome

JOB = Job("1@search", None, ItemBatch("search", ()))  # type: ignore[arg-type]
FAILED = Outcome(JOB, "host:1", failure=Failure("score", "configured to fail"))
NEVER = object()
LONG_S = 120.0  # enough for anything, even on a busy machine


class Ref:
    """Reference to a scripted value."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Worker:
    """Actor with scripted answers: a value, an error, or `NEVER`."""

    def __init__(self, start: Any = None, run: Any = FAILED, ping: Any = None, name: str = "host:1") -> None:
        self.killed = False
        answers = {"locate": Location("node", name), "start": start, "run": run, "ping": ping}
        for method, answer in answers.items():
            setattr(self, method, SimpleNamespace(remote=lambda *given, value=answer: Ref(value)))


class Quiet(Cluster):
    """Cluster without nodes, whose head node has not answered for `silent` seconds."""

    silent: float | None = None

    def __init__(self) -> None:
        super().__init__(own=None, head=None)

    def silent_for(self) -> float | None:
        return self.silent

    def nodes(self) -> list[dict[str, Any]]:
        return []


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Quiet:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray reads it only once, at import; later tests depend on it
    import ray

    def wait(refs: list[Ref], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Ref], list[Ref]]:
        come = [ref for ref in refs if ref.value is not NEVER]
        if not come:
            time.sleep(timeout)
        return come[:num_returns], [ref for ref in refs if ref not in come[:num_returns]]

    def get(ref: Ref) -> Any:
        if isinstance(ref.value, ray.exceptions.RayError):
            raise ref.value
        return ref.value

    for name, fake in (("wait", wait), ("get", get), ("put", Ref)):
        monkeypatch.setattr(ray, name, fake)
    monkeypatch.setattr(ray, "kill", lambda actor: setattr(actor, "killed", True))
    for name, seconds in (("TICK_S", 0.01), ("UNCLEAR_S", 0.2)):
        monkeypatch.setattr(ray_pool, name, seconds)
    found = Quiet()
    monkeypatch.setattr(ray_pool, "connect", lambda *given: found)
    return found


@pytest.fixture
def pool(cluster: Quiet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., RayExecutor]:
    def make(workers: list[Worker], notes: list[str] | None = None, count: int = 1, **timeouts: float) -> RayExecutor:
        waiting = iter(workers)
        monkeypatch.setattr(ray_pool, "actor_maker", lambda *given: lambda: next(waiting))
        options = RayOptions(count, address="head:6379", timeouts=Timeouts(**timeouts))
        notice = (notes if notes is not None else []).append
        return RayExecutor(print, SimpleNamespace(cache=tmp_path), options, notice)  # type: ignore[arg-type]

    return make


def outcomes(executor: RayExecutor, seconds: float = LONG_S) -> list[Outcome]:
    deadline = time.monotonic() + seconds
    found: list[Outcome] = []
    while not found and time.monotonic() < deadline:
        found = executor.wait(0.05)
    return found


def wait_for(executor: RayExecutor, notes: list[str]) -> None:
    """Run the pool until its first notice; it must not return an outcome before."""
    deadline = time.monotonic() + LONG_S
    while not notes:
        assert executor.wait(0.05) == []
        assert time.monotonic() < deadline, "no notice came"


def lost_contact() -> Any:
    import ray

    return ray.exceptions.ActorUnavailableError("socket closed", None)


def test_a_hanging_worker_without_contact_is_given_up(pool: Callable[..., RayExecutor]) -> None:
    hangs, next_one = Worker(run=lost_contact(), ping=NEVER), Worker()
    executor = pool([hangs, next_one])
    executor.submit(JOB)
    (outcome,) = outcomes(executor)
    assert outcome.failure == FAILED.failure
    (lost,) = outcome.retries
    assert re.match(r"contact with the worker was lost, and it has not answered for \d+ s", lost.reason)
    assert (hangs.killed, next_one.killed) == (True, False)


def test_a_worker_that_hangs_during_start_is_replaced(pool: Callable[..., RayExecutor]) -> None:
    notes: list[str] = []
    hangs = Worker(start=NEVER, name="host:13")
    executor = pool([hangs, Worker()], notes, start=0.2)
    executor.submit(JOB)
    assert len(outcomes(executor)) == 1
    assert hangs.killed
    said = r"a worker was lost during start: host:13 is not ready after \d+ s; starting another"
    assert re.fullmatch(said, notes[0])


def test_a_slow_start_is_reported_once(pool: Callable[..., RayExecutor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SLOW_S", 0.1)
    notes: list[str] = []
    executor = pool([Worker(start=NEVER, name="host:13")], notes)
    executor.submit(JOB)
    wait_for(executor, notes)
    for _ in range(5):
        assert executor.wait(0.05) == []
    (said,) = notes
    assert said.startswith("no worker can score yet: 1 starting, host:13 for 0 min.")
    assert "locks/prepare" in said


@pytest.mark.parametrize("last", [None, CheckpointError("m", "disk full")])
def test_a_failed_build_ends_the_search_only_if_all_workers_fail(
    pool: Callable[..., RayExecutor], last: InputError | None
) -> None:
    notes: list[str] = []
    slow = Worker(start=NEVER)
    starting = Ref(NEVER)
    slow.start = SimpleNamespace(remote=lambda: starting)  # type: ignore[attr-defined]
    executor = pool([Worker(start=CheckpointError("m", "disk full"), name="bad:1"), slow], notes, count=2)
    executor.submit(JOB)
    wait_for(executor, notes)
    assert outcomes(executor, 0.3) == []
    assert notes == ["bad:1 cannot score: m: disk full.; starting the next in 5 s"]
    starting.value = last
    if last is None:
        assert len(outcomes(executor)) == 1
    else:
        with pytest.raises(CheckpointError, match="m: disk full"):  # no other worker is left
            outcomes(executor)


def test_a_worker_that_is_being_pinged_counts_as_another_worker(
    pool: Callable[..., RayExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "UNCLEAR_S", LONG_S)  # so that it is not given up
    unclear = Worker(run=lost_contact(), ping=lost_contact())
    bad = Worker(start=NEVER)
    starting = Ref(NEVER)
    bad.start = SimpleNamespace(remote=lambda: starting)  # type: ignore[attr-defined]
    executor = pool([unclear, bad], count=2)
    executor.submit(JOB)
    while not executor._members.to_ping:
        executor.wait(0.0)
    starting.value = CheckpointError("m", "disk full")
    executor._started(next(iter(executor._members.starting)))
    assert not executor.slots
    assert bad.killed


def test_outcomes_are_returned_before_the_search_ends(pool: Callable[..., RayExecutor], cluster: Quiet) -> None:
    answer = Ref(NEVER)
    worker = Worker()
    worker.run = SimpleNamespace(remote=lambda *given: answer)  # type: ignore[attr-defined]
    executor = pool([worker])
    executor.submit(JOB)
    executor.submit(JOB)
    while not executor._members.running:
        executor.wait(0.0)
    answer.value = FAILED
    cluster.silent, executor._last_tick = 100.0, 0.0
    time.sleep(0.02)
    assert [outcome.failure for outcome in executor.wait(1.0)] == [FAILED.failure]
    executor.submit(JOB)  # sends no request to a lost cluster
    for _ in range(2):
        with pytest.raises(SearchError, match="its head node has not answered for 100 s"):
            executor.wait(1.0)


def test_a_silent_head_receives_no_requests(
    pool: Callable[..., RayExecutor], cluster: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = pool([Worker(run=NEVER)])
    executor.submit(JOB)
    while not executor._members.running:
        executor.wait(0.0)
    cluster.silent = 0.0
    monkeypatch.setattr(cluster, "nodes", lambda: pytest.fail("this waits for minutes"))
    worker = next(iter(executor._members.running.values())).member.actor
    executor._last_tick = 0.0
    monkeypatch.setattr(executor, "_fill", lambda: pytest.fail("so does this"))
    executor._tick()
    executor.close()
    assert not worker.killed
