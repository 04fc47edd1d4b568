"""Rules of the worker pool: deadlines, lost workers, demand. No Ray is started."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evosearch.errors import CheckpointError, SearchError, SpecError
from evosearch.evaluation.types import ItemBatch
from evosearch.execution import ray_pool
from evosearch.execution.deadlines import Deadlines, Timeouts
from evosearch.execution.demand import RAMP, Demand, capacity, check_feasible, wanted
from evosearch.execution.faults import MAX_NODES, JobHistory, WorkerLoss, loss_of, quarantined
from evosearch.execution.members import Member, Run
from evosearch.execution.placement import REFUSE_S, SLOW_AGAIN_S, SLOW_S, WARN_AGAIN_S, WARN_S, Placement
from evosearch.execution.ray_pool import RayExecutor, RayOptions
from evosearch.execution.start_failures import MAX_FAILURES, StartFailures
from evosearch.search.protocols import Failure, Job, Outcome


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": "n", "Alive": alive, "Resources": resources}


def test_deadlines_are_fixed_at_first_then_a_multiple_of_the_slowest_job() -> None:
    deadlines = Deadlines(Timeouts(first=100.0, floor=5.0, factor=10.0))
    assert (deadlines.limit(1), deadlines.limit(1000), deadlines.typical(10)) == (100.0, 100.0, None)
    deadlines.observe(100, 20.0)  # 0.2 s an item
    deadlines.observe(100, 60.0)  # 0.6 s an item
    assert deadlines.limit(50) == pytest.approx(10 * 0.6 * 50)
    assert deadlines.typical(50) == pytest.approx(0.4 * 50)
    assert deadlines.limit(0) == pytest.approx(6.0)
    assert Deadlines(Timeouts(floor=500.0), 0.1, 1.0, 10).limit(2) == 500.0


def test_a_job_is_given_up_after_two_lost_workers_or_five_lost_nodes() -> None:
    history = JobHistory(job=None)  # type: ignore[arg-type]
    for index in range(MAX_NODES - 1):
        history.attempts.append(WorkerLoss("its node was lost: power", node=f"n{index}", node_lost=True))
        assert history.give_up_reason() is None
    history.attempts.append(WorkerLoss("the worker died: no reason", node="a"))
    assert history.give_up_reason() is None
    history.attempts.append(WorkerLoss("the worker died: again", node="b"))
    assert (
        history.give_up_reason()
        == "quarantined: 2 workers were lost while scoring it; the last: the worker died: again"
    )
    assert history.bad_nodes == {"n0", "n1", "n2", "n3", "a", "b"}
    failure, retries = quarantined(history, "why")
    assert (failure.stage, failure.reason) == ("worker", "why")
    assert [retry.reason for retry in retries][-1] == "the worker died: no reason"
    assert len(retries) == MAX_NODES


def test_losses_are_attributed_to_nodes_that_turn_out_to_be_lost() -> None:
    history = JobHistory(job=None)  # type: ignore[arg-type]
    history.attempts += [
        WorkerLoss("the worker died: a signal", node="a"),
        WorkerLoss("the worker died: a signal", node="b"),
    ]
    history.blame_nodes({"a": "received SIGTERM"})
    assert [loss.node_lost for loss in history.losses] == [True, False]
    assert history.retries[0].reason == "its node was lost: received SIGTERM"
    assert history.give_up_reason() is None
    for index in range(MAX_NODES - 1):
        history.attempts.append(WorkerLoss("its node was lost: power", node=f"n{index}", node_lost=True))
    assert (history.give_up_reason() or "").startswith("given up: 5 nodes were lost while scoring it")


def test_rays_errors_about_workers_are_classified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray reads it only once, at import; later tests depend on it
    import ray

    errors = ray.exceptions
    memory = (
        "1 worker(s) were killed … Memory on the node (IP: h) was 5.23GB used / 23.54GB limit (0.22)\nOOM kill reason"
    )
    loss = loss_of(errors.OutOfMemoryError(memory), "n")
    assert loss.reason == "the worker was killed: its node ran out of memory (5.23GB used / 23.54GB limit)"
    assert not loss.node_lost
    gone = errors.ActorDiedError()
    gone.error_msg = "The actor died.\nThe actor died because its node has died. Node Id: 1\n\tthe actor's node was "
    gone.error_msg += "terminated expectedly: received SIGTERM"
    assert (loss_of(gone).reason, loss_of(gone).node_lost) == ("its node was lost: received SIGTERM", True)
    gone._preempted = True
    assert loss_of(gone).reason == "its node was preempted"
    lost = loss_of(errors.ActorUnavailableError("socket closed", None))
    assert (lost.node_lost, lost.unclear) == (True, True)
    killed = errors.ActorDiedError()
    killed.error_msg = (
        "The actor is dead. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits unexpectedly. x"
    )
    assert loss_of(killed).reason == "the worker died: Worker exits unexpectedly."
    raised = loss_of(errors.RayTaskError("run", "traceback\nKeyError: 'x'", KeyError("x")))
    assert raised.reason == "the worker raised KeyError: 'x'"


def test_the_number_of_requested_workers_grows_gradually() -> None:
    assert wanted(jobs=100, placed=2, count=5, fill=False) == 5
    assert wanted(jobs=100, placed=0, count=None, fill=False) == RAMP
    assert wanted(jobs=100, placed=40, count=None, fill=False) == 80
    assert wanted(jobs=6, placed=40, count=None, fill=False) == 6
    assert wanted(jobs=6, placed=40, count=None, fill=True) == 80


def test_capacity_counts_living_nodes() -> None:
    demand = Demand(1, 0.5)
    assert capacity([node(CPU=8.0, GPU=2.0), node(CPU=1.0, GPU=4.0), node(False, CPU=8.0, GPU=8.0)], demand) == 5
    assert demand.fits({"CPU": 1.0, "GPU": 0.5})
    assert not Demand(1, 2.0).fits({"CPU": 64.0, "GPU": 1.0})


def test_infeasible_resources_are_rejected_by_name() -> None:
    nodes = [node(CPU=8.0, GPU=1.0), node(CPU=8.0, GPU=1.0), node(False, CPU=8.0, GPU=8.0)]
    with pytest.raises(SpecError) as caught:
        check_feasible(Demand(1, 2.0), nodes, None)
    assert caught.value.where == "workers.gpus_per_worker"
    assert "got 2: a worker needs 2 GPU, 1 CPU" in str(caught.value)
    assert "Its nodes have: 1 GPU, 8 CPU." in str(caught.value)
    check_feasible(Demand(1, 2.0), nodes, [{"CPU": 8.0, "GPU": 4.0}])  # the autoscaler could add one
    with pytest.raises(SpecError, match=r"workers\.threads: got 16"):
        check_feasible(Demand(16, 0.0), nodes, None)


class _Nodes:
    """Fake of a cluster with one node."""

    silent: float | None = None

    def silent_for(self) -> float | None:
        return self.silent

    def free(self) -> list[dict[str, float]]:
        return [{"CPU": 0.0}]

    def nodes(self) -> list[dict[str, Any]]:
        return [node(CPU=4.0)]

    def groups(self) -> None:
        return None

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        return {"CPU": 4.0}, {}


def test_workers_waiting_for_resources_are_reported_repeatedly() -> None:
    notes: list[str] = []
    now = [0.0]
    placement = Placement(_Nodes(), Demand(2, 0.0), notes.append, clock=lambda: now[0])  # type: ignore[arg-type]
    for second in range(0, int(WARN_S + WARN_AGAIN_S) + 20, 5):
        now[0] = float(second)
        placement.check(pending=3, placed=0)
    missing = "no worker is placed yet, 3 are waiting for free resources"
    assert notes == 2 * [f"{missing}: each takes 2 CPU; the cluster has 4 CPU, free: no CPU"]
    placement.check(pending=3, placed=1)
    assert len(notes) == 2


def test_slow_starts_are_reported_repeatedly() -> None:
    notes: list[str] = []
    now = [0.0]
    placement = Placement(_Nodes(), Demand(1, 0.0), notes.append, clock=lambda: now[0])  # type: ignore[arg-type]
    for second in range(0, int(SLOW_S + SLOW_AGAIN_S) + 40, 10):
        now[0] = float(second)
        placement.check_starts({"b:2": 5.0, "a:1": 0.0}, ready=0)
    assert [text.split(". ")[0] for text in notes] == [
        "no worker can score yet: 2 starting, a:1 for 5 min",
        "no worker can score yet: 2 starting, a:1 for 35 min",
    ]
    placement.check_starts({"a:1": 0.0}, ready=1)
    placement.check_starts({}, ready=0)
    assert len(notes) == 2


def test_an_infeasible_pool_fails_within_the_first_minute() -> None:
    now = [0.0]
    placement = Placement(_Nodes(), Demand(8, 0.0), print, clock=lambda: now[0])  # type: ignore[arg-type]
    placement.check(1, 0)
    now[0] = REFUSE_S + 1
    assert now[0] < 60
    with pytest.raises(SpecError, match=r"workers\.threads: got 8: a worker needs 8 CPU, but no node"):
        placement.check(1, 0)


def test_consecutive_start_failures_back_off_exponentially() -> None:
    notes: list[str] = []
    now = [0.0]
    starts = StartFailures(notes.append, clock=lambda: now[0])
    for _ in range(MAX_FAILURES - 1):
        starts.lost("the worker died: a signal", others=False)
        assert not starts.paused
    starts.lost("the worker died: a signal", others=True)
    assert notes[-1] == "a worker was lost during start: the worker died: a signal; starting the next in 5 s"
    assert starts.paused
    starts.lost("the worker died: a signal", others=True)
    assert notes[-1].endswith("; starting the next in 10 s")
    now[0] = 10.0
    assert not starts.paused
    for _ in range(20):
        starts.lost("the worker died: a signal", others=True)
    assert notes[-1].endswith("; starting the next in 600 s")
    with pytest.raises(SearchError, match=r"workers die during start: the worker died: a signal$"):
        starts.lost("the worker died: a signal", others=False)
    starts.reset()
    starts.lost("the worker died: a signal", others=False)
    assert notes[-1].endswith("; starting another")


def test_a_worker_that_cannot_be_built_ends_the_search_only_without_others() -> None:
    notes: list[str] = []
    starts = StartFailures(notes.append, clock=lambda: 0.0)
    starts.not_built("host:1", CheckpointError("m", "disk full"), others=True)
    assert notes == ["host:1 cannot score: m: disk full.; starting the next in 5 s"]
    assert starts.paused
    with pytest.raises(CheckpointError, match="m: disk full"):
        starts.not_built("host:1", CheckpointError("m", "disk full"), others=False)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RayExecutor:
    """A pool without workers; tests inject the answers."""
    monkeypatch.setattr(ray_pool, "connect", lambda *given: _Nodes())
    monkeypatch.setattr(ray_pool, "actor_maker", lambda *given: None)
    options = RayOptions(0, address="head:6379", timeouts=Timeouts(first=100.0, floor=5.0))
    return RayExecutor(print, SimpleNamespace(cache=tmp_path), options)  # type: ignore[arg-type]


def test_only_scored_jobs_affect_the_deadlines(pool: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that fails within seconds must not shorten the deadlines of the next ones."""
    job = Job("1@search", None, ItemBatch("search", ()))  # type: ignore[arg-type]
    failed = Outcome(job, "host:1", failure=Failure("materialize", "not finite"))
    scored = Outcome(job, "host:1", card=object())  # type: ignore[arg-type]
    answers = {"first": failed, "second": scored}
    monkeypatch.setattr(ray_pool, "answer", lambda ref, node: (answers[ref], None))
    for ref, limit in (("first", 100.0), ("second", 5.0)):
        pool._members.running[ref] = Run(JobHistory(job), Member(None, None))
        pool._finished(ref)
        assert pool._deadlines.limit(1) == limit
    assert len(pool._done) == 2


def test_a_silent_head_is_not_queried_for_its_capacity(pool: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (pool.capacity(), pool.busy()) == (4, True)
    monkeypatch.setattr(_Nodes, "silent", 0.0)
    for query in ("nodes", "free"):
        monkeypatch.setattr(_Nodes, query, lambda self: pytest.fail("this would hang for days"))
    assert (pool.capacity(), pool.busy()) == (0, False)
