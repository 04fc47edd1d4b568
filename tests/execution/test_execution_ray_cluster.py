"""Errors of joining a cluster, raised within seconds, and the end of a Ray of our own."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from evosearch import documents
from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import SpecError
from evosearch.execution import ray_cluster, ray_settings
from evosearch.execution.ray_cluster import Cluster, address_of, connect
from evosearch.setup.executors import cluster_of, worker_count
from evosearch.spec.config import WorkersConfig

UNUSED_ADDRESS = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", *TELEMETRY_OFF):
        monkeypatch.setenv(name, "1")  # for monkeypatch to restore them
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_token_the_cluster_is_not_contacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (None, tmp_path / "missing"):
        if named:
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
        with pytest.raises(SpecError) as caught:
            connect(tmp_path / "token", UNUSED_ADDRESS, None)
        assert caught.value.where == f"workers.address: {UNUSED_ADDRESS}"
        assert "no token for this cluster in RAY_AUTH_TOKEN" in str(caught.value)
    assert not (tmp_path / "token").exists()  # a new token would be useless


def test_an_unreachable_cluster_is_an_error_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", 64 * "a")
    monkeypatch.setenv("EVOSEARCH_HOSTS", f"ray://{UNUSED_ADDRESS}")
    with pytest.raises(SpecError, match=r"workers\.address: 127\.0\.0\.1:9: no answer within 10 s"):
        connect(tmp_path / "token", UNUSED_ADDRESS, None)
    with pytest.raises(SpecError, match=r"not the address of a Ray cluster\. HOST:PORT of its head node"):
        connect(tmp_path / "token", "http://127.0.0.1:8265", None)


def test_of_two_concurrently_created_tokens_the_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "ray" / "token"
    fresh = ray_settings.secrets.token_hex

    def slow(size: int) -> str:
        token.write_text("the other's")  # in use already
        return fresh(size)

    monkeypatch.setattr(ray_settings.secrets, "token_hex", slow)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "1")  # for monkeypatch to restore it
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    ray_settings.secure_environment(token)
    assert token.read_text() == "the other's"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(token)
    token.unlink()
    monkeypatch.setattr(ray_settings.secrets, "token_hex", fresh)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    ray_settings.secure_environment(token)
    assert len(token.read_text()) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert list(token.parent.iterdir()) == [token], "a temporary file was left"


def test_a_second_ray_in_a_process_gets_its_own_token(
    ray_knows_its_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself caches the first token, which the head of the second Ray would refuse after a long wait."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "1")  # for monkeypatch to restore it
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for name in ("first", "second"):
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        ray_settings.secure_environment(tmp_path / name)
        shown = AuthenticationTokenLoader.instance().get_raw_token()
        assert shown == (tmp_path / name).read_text()


JOIN = """
import sys
from pathlib import Path
from evosearch.execution import ray_cluster
ray_cluster.REACH_S = 3.0
try:
    ray_cluster.connect(Path("token"), sys.argv[1], None)
except ray_cluster.SpecError as exc:
    print(exc)
    sys.stdout.flush()
import os
os._exit(0)  # Ray's client thread still waits for an answer
"""


ENDS = """
import time
from pathlib import Path
import psutil
from evosearch.execution import ray_cluster
cluster = ray_cluster.connect(Path("token"), None, 1)
assert cluster.ended() is None
next(process for process in psutil.Process().children(recursive=True) if process.name() == "raylet").kill()
until = time.monotonic() + 60
while (reason := cluster.ended()) is None and time.monotonic() < until:
    time.sleep(0.2)
print("reason:", reason, flush=True)
cluster.leave()
"""


def test_an_own_ray_without_a_living_node_has_ended(tmp_path: Path) -> None:
    """A pool that waited for a new node, as in a cluster, would wait for ever."""
    command = [sys.executable, "-c", ENDS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert "reason: " in done.stdout, done.stderr[-2000:]
    assert "reason: None" not in done.stdout
    assert not list(tmp_path.glob("evosearch-ray-*"))


def test_a_server_other_than_ray_is_recognized(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        environment = os.environ | {"RAY_AUTH_TOKEN": 64 * "a", "EVOSEARCH_HOSTS": f"ray://{address}"}
        command = [sys.executable, "-c", JOIN, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment, cwd=tmp_path)
    assert f"workers.address: {address}: not a Ray cluster" in done.stdout, done.stderr


def test_a_silent_head_node_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: now[0])
    server = socket.create_server(("127.0.0.1", 0))
    server_address = server.getsockname()[:2]
    joined = Cluster(None, server.getsockname()[:2])
    monkeypatch.setattr(joined, "nodes", lambda: [{"NodeID": "n", "Alive": False}])
    assert joined.silent_for() is None
    assert joined.lost_nodes() == {"n": ""}
    server.close()
    monkeypatch.setattr(joined, "nodes", lambda: pytest.fail("this would hang for minutes"))
    assert joined.lost_nodes() == {}  # not queried, although it answered a moment ago
    assert joined.silent_for() == 0.0
    now[0] = 110.0
    assert joined.silent_for() == 10.0
    with socket.create_server(server_address):
        now[0] = 110.5
        assert joined.silent_for() == 10.5  # cached for a while
        now[0] = 125.0
        assert joined.silent_for() is None
    assert joined.silent_for() == 0.0  # counted from the new failure


def test_a_search_within_a_ray_job_joins_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = WorkersConfig.model_validate({})
    assert cluster_of(workers) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_of("10.0.0.2:6379") == "10.0.0.2:6379"
    assert cluster_of(workers) == "10.0.0.1:6379"
    assert worker_count(workers) == (None, None)  # as many as fit, with one GPU each if nodes have GPUs
    assert worker_count(WorkersConfig.model_validate({"count": 4, "gpus_per_worker": 2})) == (4, 2.0)
    assert worker_count(WorkersConfig.model_validate({"device": "cpu"})) == (None, 0.0)
    assert cluster_of(WorkersConfig.model_validate({"executor": "local"})) is None


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"gpus_per_worker": 1.5}, r"gpus_per_worker: got 1\.5\. A fraction up to 1"),
        ({"address": "http://head:8265"}, r"address: got 'http://head:8265'\. HOST:PORT of the head node, or auto"),
        ({"address": "ray://head:10001"}, r"evosearch submit SPEC --address http://HOST:8265"),
    ],
)
def test_invalid_worker_settings_are_rejected_by_name(workers: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        documents.validate(WorkersConfig, workers, "night.yaml: workers", SpecError)


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.1:6379", "[fd00::1]:6379", "auto"])
def test_valid_cluster_addresses_are_accepted(address: str) -> None:
    assert WorkersConfig.model_validate({"address": address}).address == address


@pytest.mark.parametrize("fails", [False, True])
def test_the_folder_of_an_own_ray_is_private_and_removed(
    ray_knows_its_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """With a stand-in for Ray, which gives its folder the mode 0777 as Ray does."""
    import ray

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "1")  # for monkeypatch to restore it
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))  # too long for sockets, so /tmp is used
    used: list[Path] = []

    def init(**options: object) -> None:
        used.append(Path(str(options["_temp_dir"])))
        used[0].mkdir()
        used[0].chmod(0o777)
        (used[0] / "session_latest").symlink_to("nowhere")
        if fails:
            raise RuntimeError("no raylet")

    stopped: list[bool] = []
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append(used[0].exists()))
    if fails:
        with pytest.raises(RuntimeError):
            ray_cluster.start_local(tmp_path / "token")
    else:
        folder = ray_cluster.start_local(tmp_path / "token")
        assert used[0].parent == folder.path
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert len(str(used[0])) <= ray_settings.LONGEST
        Cluster(folder, None).leave()
        Cluster(folder, None).leave()  # without effect
    assert stopped == [True], "the folder is removed after Ray has ended"
    assert not used[0].parent.exists()


def test_a_cluster_that_was_joined_is_not_stopped(ray_knows_its_mode: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("it is another's"))
    Cluster(None, None).leave()
