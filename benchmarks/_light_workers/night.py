"""A night of many candidates: how far the mirror is behind at the end, and what a candidate takes on the disk.

Controller, ledger, mirror and MLflow are real; workers are light and in this process. MLflow is a SQLite file, or a
server in front of one, as `evosearch ui` starts it.
"""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
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
BLOCK = 512  # unit of `st_blocks`


@dataclass(frozen=True)
class Night:
    """Settings.

    Attributes:
        candidates: Budget.
        seconds: Duration of a job.
        store: `sqlite` or `http`.
        folder: Folder for ledger and store.
    """

    candidates: int
    seconds: float
    store: str
    folder: Path

    def run(self) -> dict[str, Any]:
        """Run the search, wait for the mirror, and return the figures."""
        local = default_uri(self.folder)
        connect(local)  # creates the tables, which takes seconds
        empty = taken(self.folder / "mlflow.db")[0]
        with _server(local, self.folder / "server.log") if self.store == "http" else _no_server(local) as uri:
            found = self._search(uri)
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

    def _search(self, uri: str) -> dict[str, Any]:
        url, world = f"sqlite:///{self.folder / 'ledger.db'}", World(models=2, layers=4, items=20)
        reader = partial(Ledger.open, url, read_only=True)
        began = time.monotonic()
        with Ledger.open(url, notice=say) as ledger, ledger.acquire(SEARCH):
            ledger.put_item_sets(world.batch)
            mirror = MlflowMirror(uri, SEARCH, reader, SEARCH, SEARCH, say)
            recorder, config = Recorder(ledger, SEARCH, [mirror]), OptimizerConfig.model_validate(OPTIMIZER)
            executor = LightExecutor(world, self.seconds, SLOTS)
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
        "search, s": f"{found['search_s']:.0f}",
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


@contextmanager
def _no_server(uri: str) -> Iterator[str]:
    yield uri


@contextmanager
def _server(store: str, log: Path) -> Iterator[str]:
    """MLflow's server on a store, until the end of the block."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    name_by_hand(Secret.MLFLOW, uri)
    environment = {**os.environ, **ui_environment(store)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ui_command(store, port), env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(uri):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SearchError(log.read_text()[-3000:])
            time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
