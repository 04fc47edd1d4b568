"""Parts of a cluster without starting one: ports, secrets, state, GPUs and invalid input."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks._cluster_proof.evidence import check_ledger, unanswered
from evosearch.devcluster import cluster as clusters
from evosearch.devcluster import mlflow_server, process_environment, ray_nodes
from evosearch.devcluster.cluster import Cluster
from evosearch.devcluster.places import LONGEST_RAY, Places, State
from evosearch.devcluster.postgres import Postgres
from evosearch.devcluster.private import secret, write_private
from evosearch.devcluster.processes import PORTS, Process, free_port, listening
from evosearch.errors import InputError, SearchError
from evosearch.search.ledger.events import Event
from evosearch.tracking import server


def test_ports_are_free_and_the_wanted_one_if_possible() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        assert free_port(taken) in PORTS
        assert ("127.0.0.1", taken, psutil.Process().name()) in listening([psutil.Process()])
    wanted = free_port()
    assert free_port(wanted) == wanted
    assert free_port(wanted, taken=[wanted]) != wanted


def test_a_secret_is_created_once_and_private(tmp_path: Path) -> None:
    first = secret(tmp_path / "token")
    assert len(first) == 64
    assert secret(tmp_path / "token") == first
    assert secret(tmp_path / "other") != first
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    write_private(tmp_path / "token", "another")
    assert secret(tmp_path / "token") == "another"
    assert {entry.name for entry in tmp_path.iterdir()} == {"token", "other"}


def test_the_state_is_read_back(tmp_path: Path) -> None:
    places = Places(tmp_path / "cluster")
    places.make()
    assert State.load(places) == State()
    assert places.state.is_file(), "written first: it marks the folder as a cluster's"
    state = State({"mlflow": Process(17, 123_456, "of-a-boot", "a-mark")}, {"mlflow": 20_001}, nodes=3, cpus_per_node=2)
    state.save(places)
    assert State.load(places) == state
    assert places.state.stat().st_mode & 0o777 == 0o600
    assert {(places.folder / name).stat().st_mode & 0o777 for name in ("secrets", "logs", "runs")} == {0o700}


def test_the_paths_of_rays_sockets_are_short_enough(tmp_path: Path) -> None:
    long = State()
    folder = long.ray_folder(Places(tmp_path / ("x" * LONGEST_RAY)))
    assert len(str(folder)) <= LONGEST_RAY
    assert folder.stat().st_mode & 0o777 == 0o700
    assert long.ray_folder(Places(tmp_path)) == folder
    folder.rmdir()


@pytest.fixture
def made(tmp_path: Path) -> tuple[Places, State, Postgres]:
    places, postgres = Places(tmp_path), Postgres(tmp_path / "postgres")
    places.make()
    postgres.folder.mkdir()
    (postgres.folder / "port").write_text("20003")
    return places, State(ports={"mlflow": 20_000, "ray": 20_001, "dashboard": 20_002}, gpus_per_node=2), postgres


def test_a_shell_can_source_the_environment(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    places, state, postgres = made
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    process_environment.write(places, state, postgres)
    assert places.environment.stat().st_mode & 0o777 == 0o600
    command = f". {places.environment}; env"
    found = dict(
        line.partition("=")[::2] for line in subprocess.check_output(["sh", "-c", command], text=True).splitlines()
    )
    assert found.items() >= process_environment.of_clients(*made).items()
    assert found["EVOSEARCH_ADDRESS"] == "http://127.0.0.1:20002"
    assert "RAY_ADDRESS" not in found


def test_a_node_inherits_no_variables_of_another_cluster(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, "of another")
    monkeypatch.setenv("CUDA_HOME", "/opt/cuda")
    found = process_environment.of_nodes(*made)
    assert "of another" not in found.values()
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_AUTH_TOKEN_PATH"] == str(made[0].token)
    assert found["EVOSEARCH_PYTHON"] == sys.executable
    assert found["CUDA_HOME"] == "/opt/cuda"


def test_each_gpu_is_assigned_to_only_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes, "installed", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    names = ("head", "node-1", "node-2")
    assert [ray_nodes.devices(name, 2)["CUDA_VISIBLE_DEVICES"] for name in names] == ["", "0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [ray_nodes.devices(name, 1)["CUDA_VISIBLE_DEVICES"] for name in names] == ["", "5", "7"]
    assert ray_nodes.devices("node-1", 0) == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("named", "installed", "cards"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("", 2, []),
        ("1, 0", 2, ["1", "0"]),
        ("0,7,1", 2, ["0"]),
        ("GPU-5d2f,MIG-01", 2, ["GPU-5d2f", "MIG-01"]),
        ("0", 0, []),
    ],
)
def test_gpus_follow_cuda_visible_devices(
    named: str | None, installed: int, cards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_nodes, "installed", lambda: installed)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert ray_nodes.cards() == cards


def test_too_few_gpus_are_an_error_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "find_programs", lambda: Path("/"))
    monkeypatch.setattr(ray_nodes, "installed", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    wrong = r"--gpus-per-node: 2 nodes with 1 each need 2 GPUs, but there are 1 \(CUDA_VISIBLE_DEVICES=0\)"
    with pytest.raises(InputError, match=wrong):
        Cluster(tmp_path / "cluster").up(nodes=2, gpus_per_node=1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(InputError, match=r"3 nodes with 2 each need 6 GPUs, but there are 4\. Use fewer --nodes"):
        Cluster(tmp_path / "cluster").up(nodes=3, gpus_per_node=2)
    assert not (tmp_path / "cluster" / "postgres").exists()
    ray_nodes.check_cards(2, 2)


def test_gpus_are_counted_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = subprocess.run(["sh", "-c", "nvidia-smi -L 2>/dev/null | grep -c ^GPU"], capture_output=True, text=True)
    assert ray_nodes.installed() == int(counted.stdout)


def test_no_password_is_in_a_command(made: Any) -> None:
    places, state, postgres = made
    secret(places.token)
    mlflow_server.environment(places, postgres)
    words = mlflow_server.command(places, state, postgres) + ray_nodes.command(places, state, "node-1")
    secrets = [file.read_text() for file in places.secrets.iterdir()]
    assert len(secrets) == 4
    assert not [word for word in words if any(known in word for known in secrets)]
    assert "127.0.0.1:20000" in words[words.index("--allowed-hosts") + 1]


def test_leaked_secrets_are_found(made: Any) -> None:
    places, _, postgres = made
    write_private(postgres.passfile, "127.0.0.1:20003:*:evosearch:of-the-databases\n")
    cluster = Cluster(places.folder)
    token = secret(places.token)
    assert cluster.leaks() == []
    places.log("mlflow").write_text(f"Authorization: Bearer {token}")
    (places.folder / "runs" / "trace").write_text("password=of-the-databases")
    assert cluster.leaks() == [str(places.log("mlflow")), str(places.folder / "runs" / "trace")]


def event(seq: int, type: str, **payload: Any) -> Event:
    return Event(seq, 0.0, type, payload)


def complete() -> list[Event]:
    """A search with two candidates, the second a duplicate, and one lost worker."""
    return [
        event(1, "baseline", candidate="base", skipped=None),
        event(2, "scored", candidate="base", split="search"),
        event(3, "asked", candidate="0", duplicate_of=None),
        event(4, "asked", candidate="1", duplicate_of="0"),
        event(5, "retried", candidate="0", split="search", stage="worker", reason="its node was lost"),
        event(6, "scored", candidate="0", split="search"),
        event(7, "told", observations=[{"candidate": "0"}, {"candidate": "1"}]),
        event(8, "scored", candidate="0", split="validation"),
    ]


def test_a_complete_ledger_passes() -> None:
    assert "retried: 0: its node was lost" in check_ledger(complete(), 2)
    assert unanswered(complete()[:5]) == {"0"}


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        (complete()[:5] + complete()[6:], "lost: 0 have no result"),
        (
            [*complete(), event(9, "scored", candidate="0", split="search")],
            r"recorded twice: \[\('0', 'search', None\)\]",
        ),
        (complete()[:6] + complete()[7:], "reported to the optimizer"),
        (complete()[:4] + complete()[5:], "no 'retried' event"),
        (
            [*complete(), event(9, "failed", candidate="1", split="validation", reason="no")],
            r"failed: \[\('1', 'no'\)\]",
        ),
        (complete()[:3] + complete()[4:], "1 candidates were proposed, not 2"),
    ],
)
def test_an_incomplete_ledger_fails(events: list[Event], wrong: str) -> None:
    with pytest.raises(SearchError, match=wrong):
        check_ledger(events, 2)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "evosearch.cli.main", "cluster", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


def test_without_postgresql_up_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clusters, "find_programs", lambda: None)
    with pytest.raises(clusters.InputError, match=r"initdb, postgres.*apt-get install postgresql"):
        Cluster(tmp_path / "cluster").up()
    assert not (tmp_path / "cluster").exists()


def test_down_and_status_without_a_cluster(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    down = command("down", "--folder", nowhere)
    assert (down.returncode, down.stdout) == (2, "")
    assert f"{nowhere}: there is no cluster in this folder. Start one: evosearch cluster up" in down.stderr
    status = command("status", "--folder", nowhere)
    assert status.returncode == 1
    assert "not running" in status.stdout
    assert not Path(nowhere).exists()


def test_invalid_numbers_of_nodes_and_gpus_are_rejected() -> None:
    refused = command("up", "--nodes", "0")
    assert refused.returncode == 2
    assert "Invalid value for '--nodes'" in refused.stderr
    refused = command("up", "--gpus-per-node", "-1")
    assert refused.returncode == 2
    assert "Invalid value for '--gpus-per-node'" in refused.stderr


def test_without_the_packages_for_accounts_up_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "find_programs", dict)
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"has no flask_wtf, which MLflow's accounts need\. pip install flask-wtf"):
        Cluster(tmp_path / "cluster").up()
    assert not (tmp_path / "cluster").exists(), "nothing was started"
