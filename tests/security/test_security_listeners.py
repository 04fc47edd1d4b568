"""What listens while `ui` serves: what docs/guides/security.md says, on loopback only, with an account."""

import json
import os
import re
import signal
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

from evosearch.devcluster.processes import free_port

ROOT = Path(__file__).parents[2]
World = Callable[..., Path]
LONG_S = 900.0  # for a busy machine
# Part of a process's command line → name in the table of docs/guides/security.md
PARTS = {"mlflow": "MLflow", "uvicorn": "MLflow"}


@contextmanager
def program(log: Path, *arguments: object, **environment: str) -> Iterator[psutil.Process]:
    """Run the program; its children end with the block."""
    command = [sys.executable, "-m", "evosearch.cli.main", *map(str, arguments)]
    with log.open("ab") as out:
        popen = subprocess.Popen(command, env=os.environ | environment, stdout=out, stderr=out, start_new_session=True)
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
    """Return (address, port) of every listening TCP socket → name of its process, from /proc."""
    found: dict[tuple[str, int], str] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            line = " ".join(process.cmdline())
            name = next((name for part, name in PARTS.items() if part in line), line)
            for at in process.net_connections("inet"):
                if at.status == psutil.CONN_LISTEN or (at.type == 2 and at.laddr and not at.raddr):
                    found[at.laddr.ip, at.laddr.port] = name
    return found


def documented(listener: str) -> set[str]:
    """Return the names of the processes in one row of the table of docs/guides/security.md."""
    text = (ROOT / "docs" / "guides" / "security.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| {listener}"))
    address = row.split("|")[2]
    assert "127.0.0.1" in address
    return set(re.search(r"\(([^)]*)\)", row.split("|")[1])[1].split(", "))  # type: ignore[index]


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
        assert set(listening.values()) == documented("`evosearch ui`")
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
