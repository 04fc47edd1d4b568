"""What a cluster is made of, without one: processes, ports, secrets, state, and what is refused."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from _cluster import cluster as clusters
from _cluster import environment, mlflow_server, ray_nodes
from _cluster.cluster import Cluster
from _cluster.evidence import check_ledger, unanswered
from _cluster.places import LONGEST_RAY, Places, State
from _cluster.postgres import Postgres
from _cluster.private import secret, write_private
from _cluster.processes import PORTS, Process, free_port, last_lines, listening, start, wait_until

from evosearch.errors import SearchError
from evosearch.search.events import Event

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "cluster"
# A process with a child that left its group: they are of one session
FAMILY = "import subprocess, time; subprocess.Popen(['sleep', '600'], process_group=0); print('up'); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(600)"


def python(code: str, tmp_path: Path) -> tuple[Process, Path]:
    log = tmp_path / "log"
    return start([sys.executable, "-u", "-c", code], os.environ, tmp_path, log), log


def said(log: Path) -> str | None:
    return None if "up" in log.read_text() else "has not said it"


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=5.0)[1]


def test_a_process_is_killed_with_all_its_descendants(tmp_path: Path) -> None:
    process, log = python(FAMILY, tmp_path)
    wait_until("family", lambda: said(log), process, log, 20.0)
    members = process.members()
    assert len(members) == 2
    assert process.running
    process.kill()
    assert gone(members)
    assert not process.running


def test_what_does_not_end_by_itself_is_killed(tmp_path: Path) -> None:
    process, log = python(STUBBORN, tmp_path)
    wait_until("stubborn", lambda: said(log), process, log, 20.0)
    began = time.monotonic()
    process.stop(within_s=0.5)
    assert time.monotonic() - began > 0.5
    assert not process.running


def test_a_stranger_with_the_same_id_is_left_alone(tmp_path: Path) -> None:
    process, log = python(FAMILY, tmp_path)
    wait_until("family", lambda: said(log), process, log, 20.0)
    earlier = Process(process.pid, process.started - 60.0)
    later = Process(process.pid, process.started + 60.0)
    assert not earlier.running
    assert not later.running
    assert later.members() == []
    later.stop()
    assert process.running
    process.kill()


def test_a_part_that_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    process, log = python("print('the port is taken'); raise SystemExit(3)", tmp_path)
    with pytest.raises(SearchError, match=r"(?s)server ended\. The end of .*log:\nthe port is taken"):
        wait_until("server", lambda: "no answer", process, log, 20.0)


def test_a_part_that_takes_too_long_is_told_with_what_it_lacks(tmp_path: Path) -> None:
    process, log = python("print('up'); import time; time.sleep(600)", tmp_path)
    with pytest.raises(SearchError, match=r"server is not well after 1 s \(no answer\)"):
        wait_until("server", lambda: "no answer", process, log, 1.0)
    process.kill()


def test_logs_are_the_owners_alone(tmp_path: Path) -> None:
    process, log = python("print('up')", tmp_path)
    process.kill()
    assert log.stat().st_mode & 0o777 == 0o600
    log.write_text("".join(f"{line}\n" for line in range(100)))
    assert last_lines(log).splitlines() == [str(line) for line in range(85, 100)]


def test_a_port_is_free_and_the_wanted_one_where_it_can_be() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        taken = held.getsockname()[1]
        assert free_port(taken) in PORTS
        assert ("127.0.0.1", taken, psutil.Process().name()) in listening([psutil.Process()])
    wanted = free_port()
    assert free_port(wanted) == wanted
    assert free_port(wanted, taken=[wanted]) != wanted


def test_a_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    first = secret(tmp_path / "token")
    assert len(first) == 64
    assert secret(tmp_path / "token") == first
    assert secret(tmp_path / "other") != first
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    write_private(tmp_path / "token", "another")
    assert secret(tmp_path / "token") == "another"
    assert {entry.name for entry in tmp_path.iterdir()} == {"token", "other"}


def test_state_is_kept(tmp_path: Path) -> None:
    places = Places(tmp_path / "cluster")
    places.make()
    assert State.load(places) == State()
    state = State({"mlflow": Process(17, 1234.5678)}, {"mlflow": 20_001}, nodes=3, cpus_per_node=2)
    state.save(places)
    assert State.load(places) == state
    assert places.state.stat().st_mode & 0o777 == 0o600
    assert {(places.folder / name).stat().st_mode & 0o777 for name in ("secrets", "logs", "runs")} == {0o700}


def test_rays_sockets_have_paths_that_are_short_enough(tmp_path: Path) -> None:
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


def test_a_shell_reads_the_environment(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    places, state, postgres = made
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    environment.write(places, state, postgres)
    assert places.environment.stat().st_mode & 0o777 == 0o600
    command = f". {places.environment}; env"
    found = dict(
        line.partition("=")[::2] for line in subprocess.check_output(["sh", "-c", command], text=True).splitlines()
    )
    assert found.items() >= environment.of_clients(*made).items()
    assert found["EVOSEARCH_ADDRESS"] == "http://127.0.0.1:20002"
    assert "RAY_ADDRESS" not in found


def test_a_node_has_nothing_of_another_cluster(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, "of another")
    monkeypatch.setenv("CUDA_HOME", "/opt/cuda")
    found = environment.of_nodes(*made)
    assert "of another" not in found.values()
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_AUTH_TOKEN_PATH"] == str(made[0].token)
    assert found["EVOSEARCH_PYTHON"] == sys.executable
    assert found["CUDA_HOME"] == "/opt/cuda"


def test_nodes_share_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    names = ("head", "node-1", "node-2")
    assert [ray_nodes.devices(name, 2)["CUDA_VISIBLE_DEVICES"] for name in names] == ["", "0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [ray_nodes.devices(name, 1)["CUDA_VISIBLE_DEVICES"] for name in names] == ["", "5", "7"]
    assert ray_nodes.devices("node-1", 0) == {"CUDA_VISIBLE_DEVICES": ""}


def test_no_password_is_in_a_command(made: Any) -> None:
    places, state, postgres = made
    secret(places.token)
    mlflow_server.environment(places, postgres)
    words = mlflow_server.command(places, state, postgres) + ray_nodes.command(places, state, "node-1")
    secrets = [file.read_text() for file in places.secrets.iterdir()]
    assert len(secrets) == 4
    assert not [word for word in words if any(known in word for known in secrets)]
    assert "127.0.0.1:20000" in words[words.index("--allowed-hosts") + 1]


def test_leaks_are_found_where_nothing_is_meant_to_be(made: Any) -> None:
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


def whole() -> list[Event]:
    """A search of two candidates, one of them the other again, of which a worker was lost."""
    return [
        event(1, "control", candidate="base", skipped=None),
        event(2, "scored", candidate="base", split="search"),
        event(3, "asked", candidate="0", duplicate_of=None),
        event(4, "asked", candidate="1", duplicate_of="0"),
        event(5, "retried", candidate="0", split="search", stage="worker", reason="its node was lost"),
        event(6, "scored", candidate="0", split="search"),
        event(7, "told", observations=[{"candidate": "0"}, {"candidate": "1"}]),
        event(8, "scored", candidate="0", split="validation"),
    ]


def test_a_whole_ledger_passes() -> None:
    assert "scored elsewhere: 0: its node was lost" in check_ledger(whole(), 2)
    assert unanswered(whole()[:5]) == {"0"}


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        (whole()[:5] + whole()[6:], "lost: nothing is recorded of 0"),
        ([*whole(), event(9, "scored", candidate="0", split="search")], r"recorded twice: \[\('0', 'search', None\)\]"),
        (whole()[:6] + whole()[7:], "the optimizer was told of"),
        (whole()[:4] + whole()[5:], "no 'retried' event"),
        ([*whole(), event(9, "failed", candidate="1", split="validation", reason="no")], r"failed: \[\('1', 'no'\)\]"),
        (whole()[:3] + whole()[4:], "1 candidates were asked, not 2"),
    ],
)
def test_a_ledger_that_lacks_something_does_not(events: list[Event], wrong: str) -> None:
    with pytest.raises(SearchError, match=wrong):
        check_ledger(events, 2)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)


def test_without_postgresql_up_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clusters, "find_programs", lambda: None)
    with pytest.raises(clusters.InputError, match=r"initdb, postgres.*apt-get install postgresql"):
        Cluster(tmp_path / "cluster").up()
    assert not (tmp_path / "cluster").exists()


def test_where_no_cluster_is_there_is_none_to_stop(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    down = command("down", "--folder", nowhere)
    assert (down.returncode, down.stdout) == (2, "")
    assert f"{nowhere}: there is no cluster in this folder. scripts/cluster up" in down.stderr
    status = command("status", "--folder", nowhere)
    assert status.returncode == 1
    assert "does not run" in status.stdout
    assert not Path(nowhere).exists()


def test_nodes_are_one_or_more() -> None:
    refused = command("up", "--nodes", "0")
    assert refused.returncode == 2
    assert "got 0; 1 or more" in refused.stderr
