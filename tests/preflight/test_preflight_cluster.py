"""Dry runs on a cluster: scored on its nodes, with a forecast for the workers that fit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evosearch.execution.ray_settings import secure_environment
from evosearch.preflight import dry_run
from evosearch.preflight.check import check
from evosearch.search.progress import Silent

pytestmark = pytest.mark.ray
World = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without cores and one node that reports two, on loopback."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
            patch.setenv(name, "")  # so that it is restored, even if it was unset
            patch.delenv(name)
        secure_environment(tmp_path_factory.mktemp("ray") / "token")
        from evosearch.execution import ray_settings

        ray_settings.load_ray()
        with ray_settings.on_loopback():
            import ray
            from ray.cluster_utils import Cluster

            node = {"node_ip_address": "127.0.0.1", "num_cpus": 2, "num_gpus": 0, "object_store_memory": 80_000_000}
            cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
            cluster.add_node(**node)
            patch.setenv("EVOSEARCH_HOSTS", f"ray://{cluster.address}")
            yield cluster
            ray.shutdown()
            cluster.shutdown()


def test_an_unreachable_cluster_is_a_problem(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Must run first: a process connects to only one cluster."""
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # connecting sets it too
    monkeypatch.setenv("EVOSEARCH_HOSTS", "ray://127.0.0.1:1")
    (problem,) = check(world(workers={"address": "127.0.0.1:1"}), dry_run=True, watcher=Silent()).problems
    assert "127.0.0.1:1" in problem.where + problem.what


def test_a_dry_run_is_scored_on_the_cluster(world: World, cluster: Any) -> None:
    workers = {"address": cluster.address, "count": 9, "threads": 1, "device": "cpu", "price_per_hour": 0.5}
    result = check(world(workers=workers), dry_run=True, watcher=Silent())
    assert result.problems == ()
    forecast, memory = result.forecast, result.memory
    assert forecast["workers"] == 2
    assert any(note.startswith("2 of 9 workers fit") for note in result.notes)
    assert forecast["seconds_per_candidate"] > 0
    assert forecast["price"] == pytest.approx(2 * 0.5 * forecast["total_hours"])
    assert "worker" not in memory  # the worker does not run in this process
    assert "workers" not in memory


def test_a_busy_cluster_does_not_fail_a_check(world: World, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "PLACE_S", 5.0)
    import ray

    @ray.remote(num_cpus=1)
    class Other:
        def ready(self) -> bool:
            return True

    others = [Other.remote(), Other.remote()]
    assert ray.get([other.ready.remote() for other in others], timeout=120) == [True, True]
    workers = {"address": cluster.address, "threads": 1, "device": "cpu"}
    try:
        result = check(world(workers=workers), dry_run=True, watcher=Silent())
    finally:
        for other in others:
            ray.kill(other)
    assert result.problems == ()
    assert "the cluster is busy: no dry run, and so no forecast of time" in result.notes
    assert "total_hours" not in result.forecast


def test_a_worker_that_fits_on_no_node_is_a_problem(world: World, cluster: Any) -> None:
    workers = {"address": cluster.address, "threads": 64, "device": "cpu"}
    (problem,) = check(world(workers=workers), dry_run=True, watcher=Silent()).problems
    assert "workers.threads" in problem.where
    assert "no node of the cluster has that" in problem.what
