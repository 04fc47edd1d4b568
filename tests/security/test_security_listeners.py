"""Listeners while `run` uses Ray and while `ui` serves: on loopback only, with a token or an account."""

import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from evosearch.devcluster.processes import free_port
from evosearch.search.ledger.database_errors import NoLedgerError
from evosearch.search.ledger.ledger import Ledger

ROOT = Path(__file__).parents[2]
World = Callable[..., Path]
LONG_S = 900.0  # for a busy machine
ATTEMPTS = 3  # to start Ray on it
TOKEN_NEEDED = (401, 403)
# What Ray's programs serve by HTTP: pages, jobs, logs, metrics, and paths that do not exist
PATHS = ("/", "/api/version", "/api/jobs/", "/nodes", "/logs", "/metrics", "/api/profile", "/nowhere")


@contextmanager
def program(log: Path, *arguments: object, **environment: str) -> Iterator[psutil.Process]:
    """Run the program; its children end with the block."""
    command = [sys.executable, "-m", "evosearch.cli.main", *map(str, arguments)]
    with log.open("ab") as out:
        popen = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
        )
    process = psutil.Process(popen.pid)
    try:
        yield process
    finally:
        known = family(process)
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            popen.wait(60)
        for left in known:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        popen.wait()


def family(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def until(found: Callable[[], Any], log: Path, process: psutil.Process | None = None) -> Any:
    """Wait for a result that is true."""
    deadline = time.monotonic() + LONG_S
    while True:
        if result := found():
            return result
        ended = process is not None and process.status() == psutil.STATUS_ZOMBIE
        assert not ended, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def sockets(processes: list[psutil.Process]) -> dict[tuple[str, int], str]:
    """Return (address, port) of every listening TCP socket, and of every UDP socket → command line, from /proc."""
    found: dict[tuple[str, int], str] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            line = " ".join(" ".join(process.cmdline()).split())  # Ray pads its titles with spaces
            for at in process.net_connections("inet"):
                datagrams = at.type == socket.SOCK_DGRAM and at.laddr and not at.raddr
                if at.status == psutil.CONN_LISTEN or datagrams:
                    found[at.laddr.ip.removeprefix("::ffff:"), at.laddr.port] = line
    return found


def unix_sockets(processes: list[psutil.Process]) -> set[str]:
    """Return the paths of the Unix sockets of some processes; those without a path are left out."""
    found: set[str] = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found |= {str(at.laddr) for at in process.net_connections("unix") if str(at.laddr).startswith("/")}
    return found


def row(listener: str) -> tuple[set[str], str]:
    """Return the programs of a listener, if it names them, and its address, in the table of docs/guides/security.md."""
    text = (ROOT / "docs" / "guides" / "security.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| {listener}"))
    programs = re.search(r"\(([^)]*)\)", line.split("|")[1])
    return set(programs[1].split(", ")) if programs else set(), line.split("|")[2]


def answer(port: int, path: str = "/", headers: dict[str, str] | None = None, data: bytes | None = None) -> int | None:
    """Return the status of an HTTP answer; None if there is none, or something else answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def speaks_http(port: int) -> bool:
    """Return whether a server answers a line of HTTP/1.1 by HTTP/1; gRPC and Ray's own protocols do not."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.settimeout(20)
        connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(16).startswith(b"HTTP/1")
    return False


def scored(ledger: Path) -> int:
    """Return the number of scores on record; 0 before the ledger exists."""
    with suppress(NoLedgerError), Ledger.open(f"sqlite:///{ledger}", read_only=True) as opened:
        return sum(len(opened.events(info.search_id, types=["scored"])) for info in opened.searches())
    return 0


def of_ray(process: psutil.Process, folder: Path) -> list[psutil.Process]:
    """Return a program with its descendants, and all other processes that name Ray's folder: orphans too."""
    found = {member.pid: member for member in family(process)}
    for other in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if str(folder) in " ".join(other.cmdline()):
                found[other.pid] = other
    return list(found.values())


def alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that ended, and that its new parent has not asked for, does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def check_addresses(members: list[psutil.Process]) -> dict[tuple[str, int], str]:
    """Check that some processes listen on loopback only, and return their sockets."""
    listening = sockets(members)
    elsewhere = {at: line for at, line in listening.items() if not ipaddress.ip_address(at[0]).is_loopback}
    assert not elsewhere, elsewhere
    return listening


@pytest.mark.ray
@pytest.mark.slow
def test_ray_of_a_run_listens_on_loopback_for_its_token_only(world: World, tmp_path: Path) -> None:
    """While candidates are scored by a worker. Which programs listen depends on Ray's version; where they do must not.

    A program that listened elsewhere, or answered without the token, would be reported with its command line.
    """
    place = Path("/tmp") / f"e{secrets.token_hex(2)}"  # short enough for Ray's sockets
    place.mkdir(mode=0o755)
    log, ledger = tmp_path / "log", tmp_path / "runs" / "world" / "ledger.db"
    spec = world(
        workers={"executor": "ray", "count": 1}, budget={"candidates": 100_000}, baselines={"scales": []}, tracking={}
    )
    limits = {"RAY_raylet_start_wait_time_s": "900", "RAY_agent_register_timeout_ms": "900000"}
    settings = {"RAY_TMPDIR": str(place), "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", **limits}
    umask = os.umask(0o022)
    try:
        for _ in range(ATTEMPTS):
            with program(log, "run", spec, **settings) as process:
                if not scores_appear(process, ledger):
                    continue
                [folder] = place.glob("evosearch-ray-*")
                check_listeners(process, folder)
                members = of_ray(process, folder)
                # A closed terminal: the end is on record, and nothing of Ray is left
                process.send_signal(signal.SIGHUP)
                until(lambda: not any(alive(member) for member in members), log)  # noqa: B023
                assert not list(place.glob("evosearch-ray-*"))
                with Ledger.open(f"sqlite:///{ledger}", read_only=True) as opened:
                    assert [info.stopped for info in opened.searches()] == ["interrupted"]
                break
        else:
            pytest.fail(log.read_text())
    finally:
        os.umask(umask)
        shutil.rmtree(place)


def scores_appear(process: psutil.Process, ledger: Path) -> bool:
    """Wait for two scores; return whether they came before the program, or its Ray, ended.

    On a busy machine Ray may not start: it waits 30 s for its own node, which cannot be changed.
    """
    before, deadline = scored(ledger), time.monotonic() + LONG_S
    while time.monotonic() < deadline and alive(process):
        if scored(ledger) >= before + 2:
            return True
        if any(member.name() == "raylet" and not alive(member) for member in family(process)):
            return False
        time.sleep(1.0)
    return False


def check_listeners(process: psutil.Process, folder: Path) -> None:
    """Check what a run with a Ray in a folder listens on, and what answers there without the token."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    members = of_ray(process, folder)
    listening = check_addresses(members)
    lines = "\n".join(listening.values())
    assert "gcs_server" in lines, lines  # the list has Ray's own programs
    assert len(listening) >= 4, listening
    assert "127.0.0.1" in row("Ray, started by `run`")[1]

    named = unix_sockets(members)
    assert named
    assert all(path.startswith(f"{folder}/") for path in named), named

    web = {port: line for (_, port), line in listening.items() if speaks_http(port)}
    assert web, listening  # Ray's API server and its agent
    wrong = {"Authorization": "Bearer " + "0" * 64}
    answers = [
        (answer(port, path, headers), port, path, line)
        for port, line in web.items()
        for path in PATHS
        for headers in ({}, wrong)
    ]
    given = [each for each in answers if each[0] not in TOKEN_NEEDED]
    assert not given, "\n".join(map(str, given))
    check_addresses(of_ray(process, folder))  # also after more candidates


def test_the_ui_asks_for_its_random_account(world: World, evosearch: Any, tmp_path: Path) -> None:
    spec = world(budget={"candidates": 2}, baselines={"scales": []}, tracking={})
    assert evosearch("run", spec)[0] in (0, 3)  # promoted or not
    port, log = free_port(), tmp_path / "log"
    place = tmp_path / "temporary"
    place.mkdir()
    with program(log, "ui", "world", "--port", port, TMPDIR=str(place)) as process:
        until(lambda: answer(port, "/health"), log, process)
        line = until(lambda: re.search(r"User: (\S+), password: (\S+)", " ".join(log.read_text().split())), log)
        account = {"Authorization": "Basic " + b64encode(f"{line[1]}:{line[2]}".encode()).decode()}
        wrong = {"Authorization": "Basic " + b64encode(f"{line[1]}:password1234".encode()).decode()}
        listening = sockets(family(process))
        assert set(listening) == {("127.0.0.1", port)}, listening
        programs, address = row("`evosearch ui`")
        assert {"MLflow" if re.search("mlflow|uvicorn", line) else line for line in listening.values()} == programs
        assert "127.0.0.1" in address
        [folder] = place.glob("evosearch-ui-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert line[2] not in " ".join(" ".join(member.cmdline()) for member in family(process))

        search, json_type = "/api/2.0/mlflow/experiments/search", {"Content-Type": "application/json"}
        body = json.dumps({"max_results": 5}).encode()
        for path in ("/", search, "/ajax-api/2.0/mlflow/experiments/search", "/graphql", "/static-files/x"):
            for headers in ({}, wrong):
                assert answer(port, path, headers | json_type, body if "search" in path else None) in (401, 404), path
        assert answer(port, "/", account) == 200
        assert answer(port, search, account | json_type, body) == 200
        # A page of another site that resolves its name to this machine, and a form of another site
        assert answer(port, search, account | json_type | {"Host": f"evil.example:{port}"}, body) == 403
        assert answer(port, search, account | json_type | {"Host": "evil.example"}, body) == 403
        assert answer(port, search, account | json_type | {"Origin": "http://evil.example"}, body) == 403
        members = family(process)
        process.send_signal(signal.SIGTERM)
        psutil.wait_procs(members, timeout=60)
        until(lambda: not any(place.glob("evosearch-ui-*")), log)
    assert answer(port) is None
