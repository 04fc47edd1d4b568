"""A night of many candidates: how far the mirror is behind at the end, and what a candidate takes on the disk.

Controller, ledger, mirror and MLflow are real; workers are light and in this process. MLflow is a SQLite file, or a
server in front of one, as `evosearch ui` starts it.
"""

import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._cluster_proof.evidence import of_type, read
from benchmarks._light_workers.driver import OPTIMIZER, SEARCH, say
from benchmarks._light_workers.local import LightExecutor
from benchmarks._simulated.searches import run_search
from benchmarks._simulated.world import World
from evosearch.devcluster.processes import free_port
from evosearch.errors import SearchError
from evosearch.origins import Secret, name_by_hand
from evosearch.search.budget import Budget
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.recorder import Recorder
from evosearch.tracking.client import ARTIFACTS, connect, default_uri, run_ids
from evosearch.tracking.mirror import UP_TO_DATE, Mirror
from evosearch.tracking.mlflow import MlflowMirror
from evosearch.tracking.ui import ui_command, ui_environment

SLOTS = 6  # jobs at a time
LAG_S = 60.0  # largest lag at the end
PATIENCE_S = 3600.0  # for the mirror and the start of the server
AWAY_S = 10.0  # until a killed server is started again
BLOCK = 512  # unit of `st_blocks`


@dataclass(frozen=True)
class Night:
    """Settings.

    Attributes:
        candidates: Budget.
        seconds: Duration of a job.
        store: `sqlite` or `http`.
        folder: Folder for ledger and store.
        restart: Kill the server in the middle of the search, and start it again after some seconds.
    """

    candidates: int
    seconds: float
    store: str
    folder: Path
    restart: bool = False

    def run(self) -> dict[str, Any]:
        """Run the search, wait for the mirror, and return the figures."""
        local = default_uri(self.folder)
        connect(local)  # creates the tables, which takes seconds
        empty = taken(self.folder / "mlflow.db")[0]
        with _served(self, local) as (uri, server):
            found = self._search(uri, server if self.restart else None)
            missing = len(self._recorded() - run_ids(uri, SEARCH).keys())
        ledger = [taken(path) for path in self.folder.glob("ledger.db*")]
        artifacts = taken(self.folder / ARTIFACTS)
        database = taken(self.folder / "mlflow.db")[0] - empty
        return found | {
            "missing": missing,
            "bytes_per_candidate": {
                "ledger": sum(size for size, _ in ledger) / self.candidates,
                "mlflow.db": database / self.candidates,
                "artifacts": artifacts[0] / self.candidates,
            },
            "inodes_per_candidate": artifacts[1] / self.candidates,
        }

    def _recorded(self) -> set[str]:
        events = read(f"sqlite:///{self.folder / 'ledger.db'}", SEARCH)
        return {str(payload["candidate"]) for payload in of_type(events, "asked", "baseline")}

    def _search(self, uri: str, restarted: "Server | None") -> dict[str, Any]:
        url, world = f"sqlite:///{self.folder / 'ledger.db'}", World(models=2, layers=4, items=20)
        reader = partial(Ledger.open, url, read_only=True)
        began = time.monotonic()
        with Ledger.open(url, notice=say) as ledger, ledger.acquire(SEARCH):
            ledger.put_item_sets(world.batch)
            mirror = MlflowMirror(uri, SEARCH, reader, SEARCH, SEARCH, say)
            recorder, config = Recorder(ledger, SEARCH, [mirror]), OptimizerConfig.model_validate(OPTIMIZER)
            executor = LightExecutor(world, self.seconds, SLOTS)
            with _restarting(restarted, lambda: len(recorder.state.finished) >= self.candidates // 2):
                reason = run_search(recorder, SEARCH, world, executor, config, Budget(self.candidates))
            recorder.record([("stopped", {"reason": reason})])
            ended = time.monotonic()
            behind = _behind(mirror)
            first_s = _seconds(partial(mirror.bring_forward, str(self.candidates - 1), PATIENCE_S, PATIENCE_S))
            mirror.close(PATIENCE_S, PATIENCE_S)
            lag_s = time.monotonic() - ended
            if mirror.state != UP_TO_DATE:
                raise SearchError(f"the mirror is {mirror.state}")
        return {
            "candidates": self.candidates,
            "store": self.store,
            "restarted": restarted is not None,
            "workers_s": self.candidates * self.seconds / SLOTS,
            "search_s": ended - began,
            "events_behind": behind,
            "winner_s": first_s,
            "lag_s": lag_s,
            "candidates_per_s": self.candidates / (ended - began + lag_s),
        }


def table(found: dict[str, Any]) -> str:
    """Markdown table with one figure per row."""
    sizes = ", ".join(f"{name} {size / 1024:.1f}" for name, size in found["bytes_per_candidate"].items())
    rows = {
        "candidates, store": f"{found['candidates']}, {found['store']}",
        "server killed and restarted in the middle": "yes" if found["restarted"] else "no",
        "search, s (of which its workers need)": f"{found['search_s']:.0f} ({found['workers_s']:.0f})",
        "events that were not mirrored at its end": found["events_behind"],
        "until the last candidate's run existed, s": f"{found['winner_s']:.1f}",
        "until everything was mirrored, s": f"{found['lag_s']:.1f}",
        "candidates without a run": found["missing"],
        "KiB per candidate": sizes,
        "files and folders per candidate, artifacts": f"{found['inodes_per_candidate']:.3f}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def passed(found: dict[str, Any]) -> bool:
    """Return whether every candidate has a run, and the mirror kept up."""
    return bool(found["missing"] == 0 and found["lag_s"] <= LAG_S and found["inodes_per_candidate"] < 0.1)


def taken(path: Path) -> tuple[int, int]:
    """Return the bytes on the disk and the number of files and folders of a file or folder; 0 if it is missing."""
    places = [path, *path.rglob("*")] if path.exists() else []
    return sum(place.lstat().st_blocks for place in places) * BLOCK, len(places)


def _behind(mirror: Mirror) -> int:
    words = mirror.state.split()
    return int(words[1]) if words[0] == "behind:" else 0


def _seconds(call: partial[bool]) -> float:
    began = time.monotonic()
    if not call():
        raise SearchError("the last candidate was not mirrored")
    return time.monotonic() - began


class Server:
    """MLflow's server on a store, as `evosearch ui` starts it."""

    def __init__(self, store: str, log: Path) -> None:
        self._store, self._log = store, log
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        name_by_hand(Secret.MLFLOW, self.uri)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        environment, command = {**os.environ, **ui_environment(self._store)}, ui_command(self._store, self._port)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(self.uri):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SearchError(self._log.read_text()[-3000:])
            time.sleep(0.5)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server and its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, how)
            self._process.wait(60)
            self._process = None

    def restart_when(self, due: Callable[[], bool], ended: threading.Event) -> None:
        """Kill the server once something is due, and start it again after some seconds."""
        while not due():
            if ended.wait(0.2):
                return
        self.stop(signal.SIGKILL)
        time.sleep(AWAY_S)
        self.start()


@contextmanager
def serving(store: str, log: Path) -> Iterator[Server]:
    """MLflow's server on a store, until the end of the block."""
    server = Server(store, log)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def _served(night: Night, local: str) -> Iterator[tuple[str, Server | None]]:
    """The address of the store, with its server if it has one."""
    if night.store != "http":
        yield local, None
        return
    with serving(local, night.folder / "server.log") as server:
        yield server.uri, server


@contextmanager
def _restarting(server: Server | None, due: Callable[[], bool]) -> Iterator[None]:
    """Restart a server, if one is given, once something is due; it is up again at the end of the block."""
    if server is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=server.restart_when, args=(due, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
