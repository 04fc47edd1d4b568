"""Searches as jobs on a real Ray head with a token: submit, status, logs, stop, and their errors."""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from evosearch.devcluster.processes import HOST, Process, free_port, start
from evosearch.errors import ClusterError, LedgerError
from evosearch.execution import ray_jobs
from evosearch.execution.ray_jobs import RUN, Job, Jobs
from evosearch.jobs.queue import find_job, position, state_of
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.spec.spec import load_spec

pytestmark = pytest.mark.ray
World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]
LONG_S = 240.0  # limit on a busy machine


class Head:
    """A Ray head node, one search at a time, everything on loopback; its folder outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token, self.runs = folder, folder / "token", folder / "runs"
        self.token.write_text("0123456789abcdef" * 4)
        self.token.chmod(0o600)
        self.ports = free_port(), free_port()
        self.url = f"http://{HOST}:{self.ports[0]}"
        self.process: Process | None = None

    def start(self) -> None:
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_JOB_START_TIMEOUT_SECONDS": "604800",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAY_raylet_start_wait_time_s": str(int(LONG_S)),
            "EVOSEARCH_RAY_ADDRESS": f"{HOST}:{self.ports[1]}",
            "EVOSEARCH_PYTHON": sys.executable,
            "EVOSEARCH_RUNS": str(self.runs),
            "EVOSEARCH_CACHE": str(self.folder / "cache"),
            "EVOSEARCH_DATA": str(self.folder / "data"),
            "OMP_NUM_THREADS": "1",
        }
        node = {
            "node_ip_address": HOST,
            "temp_dir": str(self.folder / "ray"),
            "object_store_memory": 100_000_000,
            "dashboard_agent_listen_port": 0,
            "min_worker_port": 0,
            "max_worker_port": 0,
            "num_cpus": 1,
            "num_gpus": 0,
            "resources": {"evosearch_search": 1},
            "gcs_server_port": self.ports[1],
            "include_dashboard": True,
            "dashboard_host": HOST,
            "dashboard_port": self.ports[0],
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EVOSEARCH_"))}
        command = [sys.executable, "-m", "evosearch.devcluster.ray_node", json.dumps(node)]
        deadline = time.monotonic() + LONG_S
        while not self._is_up():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            if self.process is None or not self.process.running:  # an overloaded machine
                self.kill()
                self.process = start(command, kept | own, self.folder, self.folder / "log")
            time.sleep(0.5)

    def _is_up(self) -> bool:
        try:
            return Jobs(self.url).capacity() == 1.0
        except ClusterError:
            return False

    def kill(self) -> None:
        """Kill everything, as when the machine is lost."""
        if self.process is not None:
            self.process.kill()
        shutil.rmtree(self.folder / "ray", ignore_errors=True)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ev-"))  # short, because of the sockets in it
    found = Head(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(found.token))
        for name in ("RAY_AUTH_TOKEN", "EVOSEARCH_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_ADDRESS", "http://192.0.2.1:1")  # another cluster: --address takes precedence
        patch.setattr(ray_jobs, "READY_S", LONG_S)  # a head that was just started accepts no jobs for a while
        try:
            found.start()
            yield found
        finally:
            found.kill()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def spec(world: World, tmp_path: Path) -> World:
    """A spec with absolute paths of models."""

    def write(name: str, **changes: Any) -> Path:
        hole = {"low": 0.0, "high": 1.5, "per": "group", "groups": 2, "ends": "shared"}
        at = tmp_path / "specs"
        models = [{"model": f"{at}/expert{index}", "parameters": {"weight": hole}} for index in (1, 2)]
        recipe = {"merge_method": "task_arithmetic", "base_model": f"{at}/base", "models": models}
        return world(name, **{"recipe": recipe} | changes)

    return write


def said(evosearch: Evosearch, *arguments: object) -> Any:
    code, out, err = evosearch(*arguments, "--json")
    assert code == 0, out + err
    return json.loads(out)


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LONG_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def test_a_search_is_checked_then_queued_and_runs_to_its_end(head: Head, spec: World, evosearch: Evosearch) -> None:
    workers = {"executor": "ray", "count": 1, "threads": 1, "gpus_per_worker": 0}  # in an actor of the same cluster
    path = spec("night", workers=workers)
    search_id = load_spec(path).search_id()
    code, out, err = evosearch("submit", path, "--address", head.url, "--json")
    assert code == 0, out + err
    first = json.loads(out)
    assert (first["ok"], first["already"], first["job"]) == (True, False, f"night-{search_id[:12]}-1")
    assert first["search_id"] == search_id
    assert first["forecast"]["seconds_per_candidate"] > 0  # one candidate was scored there
    assert any(f"{path}: ledger: stored in the runs folder of the cluster's head" in text for text in first["notes"])
    assert "checked here; now checking on the cluster" in err or err == ""  # not on standard output

    again = said(evosearch, "submit", path, "--address", head.url)
    assert (again["already"], again["job"]) == (True, first["job"])
    assert [job.id for job in Jobs(head.url).all() if job.kind == RUN] == [first["job"]]

    code, out, err = evosearch("logs", "night", "-f", "--address", head.url)
    assert code in (0, 3), out + err  # as `run` exits
    assert "search: 18/18 · best fitness" in out
    assert "ended: candidates" in out
    assert '{"evosearch"' not in out
    raw = evosearch("logs", first["job"], "--address", head.url, "--json")[1]
    assert json.loads(raw.splitlines()[-1])["exit"] == code
    (row,) = said(evosearch, "status", "--address", head.url)
    assert row["state"] == ("finished" if code == 0 else "finished: not promoted")
    assert (row["name"], row["search_id"], row["done"], row["total"], row["failed"]) == ("night", search_id, 18, 18, 0)
    with Ledger.open(f"sqlite:///{head.runs}/night/ledger.db", read_only=True) as ledger:
        (info,) = ledger.searches()
    assert (info.search_id, info.stopped) == (search_id, "candidates")
    table = evosearch("status", "--address", head.url)[1]
    assert f"Searches on {head.url}" in table
    assert "18/18" in table

    code, _, err = evosearch("logs", "nigth", "--address", head.url)
    assert code == 2
    assert f"nigth: no such search on {head.url}. Known searches: night. Did you mean 'night'?" in err


def test_what_only_the_cluster_can_see_keeps_a_search_out_of_the_queue(
    head: Head, spec: World, evosearch: Evosearch
) -> None:
    models = [{"model": f"/nowhere/expert{index}"} for index in (1, 2)]
    hole = {"weight": {"low": 0.0, "high": 1.0}}
    path = spec("absent", recipe={"merge_method": "linear", "models": models, "parameters": hole})
    code, out, _ = evosearch("submit", path, "--address", head.url)
    assert code == 2
    text = " ".join(out.split())
    assert "/nowhere/expert1: no such folder" in text
    assert "/nowhere/expert2: no such folder" in text
    assert not [job for job in Jobs(head.url).all() if job.kind == RUN and job.name == "absent"]


def test_searches_wait_for_their_turn_in_the_order_they_came(head: Head, tmp_path: Path) -> None:
    jobs, order, go = Jobs(head.url), tmp_path / "order", tmp_path / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.1; done"
    assert jobs.capacity() == 1.0
    for name in "abcd":
        # If the withdrawn job starts, it must not end by itself before it is stopped
        entrypoint = f"echo {name} >> {order}; {'exec sleep 3600' if name == 'c' else wait}"
        about = {"name": f"queued-{name}", "search_id": name * 64, "spec": ""}
        assert jobs.submit(f"queued-{name}-1", RUN, entrypoint, None, about, queue=True)
    assert not jobs.submit("queued-a-1", RUN, "true", None, {"name": "queued-a"}, queue=True)  # the id exists

    def job(name: str) -> Job:
        return find_job(jobs, f"queued-{name}")

    until(lambda: job("a").state == "running")
    listed = jobs.all()
    assert [position(job(name), listed) for name in "abcd"] == [None, 1, 2, 3]
    jobs.stop(job("c"))
    listed = jobs.all()
    assert state_of(job("c"), position(job("c"), listed), {}) in ("withdrawn", "stopped: interrupted")
    assert position(job("d"), listed) in (1, 2)
    go.touch()
    until(lambda: not job("d").active)
    assert order.read_text().split() in (["a", "b", "d"], ["a", "b", "c", "d"])  # c may start, and is then stopped
    assert [job(name).state for name in "abd"] == ["succeeded"] * 3
    until(lambda: job("c").state == "stopped")


def test_a_wrong_token_no_token_and_no_cluster_are_errors_at_once(
    head: Head, evosearch: Evosearch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    code, _, err = evosearch("status", "--address", head.url)
    assert code == 2
    assert f"--address: the cluster at {head.url} refuses the token. The cluster's token, in RAY_AUTH_TOKEN" in err
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code, _, err = evosearch("status", "--address", head.url)
    assert (code, "requires a token" in err) == (2, True)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    code, _, err = evosearch("logs", "night", "--address", f"http://{HOST}:{free_port()}")
    assert (code, "--address: no cluster answers at http://127.0.0.1" in err) == (2, True)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    code, _, err = evosearch("stop", "night", "--address", head.url)
    assert (code, f"RAY_AUTH_TOKEN_PATH: cannot read {tmp_path}/gone" in err) == (2, True)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = evosearch("status", "--address", head.url)
    assert (code, "no token is set for the cluster" in err) == (2, True)
    code, _, err = evosearch("logs", "night")
    assert (code, "--address: no cluster given" in err) == (2, True)


def test_a_cluster_without_a_token_is_refused(head: Head, spec: World, evosearch: Evosearch) -> None:
    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"ray_version": "2.60.0"}' if self.path == "/api/version" else b"[]"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    with HTTPServer((HOST, 0), Open) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://{HOST}:{server.server_port}"
        code, _, err = evosearch("submit", spec("open"), "--address", url)
        server.shutdown()
    assert code == 2
    assert f"the cluster at {url} requires no token: anyone who can reach it can run code on it" in err


@pytest.mark.nightly
def test_a_search_outlives_the_head_and_a_stop(head: Head, spec: World, evosearch: Evosearch, tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/outlives.db"
    path = spec("long", ledger=ledger, budget={"candidates": 100_000})

    def state() -> SearchState:
        with Ledger.open(ledger, read_only=True) as opened:
            (info,) = opened.searches()
            return SearchState.from_events(opened.events(info.search_id))

    def begun() -> bool:
        try:
            with Ledger.open(ledger, read_only=True) as opened:
                return bool(opened.searches())
        except LedgerError:  # it does not exist yet, or is being created
            return False

    def finished(more_than: int) -> bool:
        return len(state().finished) > more_than

    first = said(evosearch, "submit", path, "--address", head.url)
    until(begun)
    until(lambda: finished(12))
    head.kill()
    head.start()
    before = len(state().finished)
    assert said(evosearch, "status", "--address", head.url) == []
    second = said(evosearch, "submit", path, "--address", head.url)
    assert (second["already"], second["job"], second["search_id"]) == (False, first["job"], first["search_id"])
    until(lambda: finished(before + 12))
    row = until(lambda: next((r for r in said(evosearch, "status", "--address", head.url) if r["seconds_left"]), None))
    assert (row["state"], row["total"]) == ("running", 100_000)
    assert row["per_minute"] > 0
    (listed,) = said(evosearch, "status", "--ledger", ledger)
    assert (listed["name"], listed["state"], listed["total"]) == ("long", "running", 100_000)

    stopped = said(evosearch, "stop", "long", "--address", head.url)
    assert (stopped["was"], stopped["state"], stopped["clean"]) == ("running", "stopped: interrupted", True)
    found = state()
    assert (found.stopped, found.sessions) == ("interrupted", 2)
    assert found.finished >= {str(index) for index in range(before)}
    assert said(evosearch, "stop", "long", "--address", head.url)["was"] == "stopped: interrupted"
    code, out, _ = evosearch("logs", "long", "-f", "--address", head.url)
    assert (code, "ended: interrupted" in out) == (130, True)
    third = said(evosearch, "submit", path, "--address", head.url)
    assert third["job"] == f"{first['job'][:-1]}2"
    code, out, _ = evosearch("stop", "long", "--address", head.url)
    assert code == 0
    assert "long was withdrawn" in out or "long: stopped" in out
