"""The Ray nodes of one scenario: each a process in a session of its own, on loopback, with a token."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from evosearch.devcluster.environment import kept
from evosearch.devcluster.private import secret
from evosearch.devcluster.processes import HOST, Process, free_port, last_lines, start
from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import SearchError

SCRIPTS = Path(__file__).resolve().parents[1]
OBJECT_STORE = 80_000_000  # bytes
UP_S = 120.0  # for a node to be up, on a busy machine
TRIES = 3  # Ray itself gives a node 30 s, which are few there
HEAD = "head"
FROZEN_S = 1.0  # that who is about to be killed stands still: time enough for a job to be with it


class Nodes:
    """A head, and nodes that join it."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: of the scenario; logs and the token lie there.
        """
        self._folder = folder
        self._ray = Path(tempfile.mkdtemp(prefix="evofaults-"))  # short: paths of sockets are bounded
        self._port = free_port()
        self._processes: dict[str, Process] = {}
        secret(self.token)

    @property
    def address(self) -> str:
        return f"{HOST}:{self._port}"

    @property
    def token(self) -> Path:
        return self._folder / "ray-token"

    def environment(self) -> dict[str, str]:
        """Of nodes, and of whoever joins them."""
        ours = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: else 127.0.0.1 is not taken for our address
            "PYTHONPATH": str(SCRIPTS),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return kept(os.environ) | TELEMETRY_OFF | ours

    def add(self, name: str, cpus: int = 0, **environment: str) -> None:
        """Start a node, and wait until it is up; the head first.

        Raises:
            SearchError: it does not come up.
        """
        for left in reversed(range(TRIES)):
            try:
                return self._add(name, cpus, environment)
            except SearchError:
                self.kill(name)
                if left == 0:
                    raise
        return None

    def _add(self, name: str, cpus: int, environment: dict[str, str]) -> None:
        folder, log = self._ray / name, self._folder / f"{name}.log"
        shutil.rmtree(folder, ignore_errors=True)
        settings: dict[str, Any] = {
            "node_name": name,
            "node_ip_address": HOST,
            "temp_dir": str(folder),
            "object_store_memory": OBJECT_STORE,
            "num_cpus": cpus,
            "num_gpus": 0,
            "dashboard_agent_listen_port": 0,
            "min_worker_port": 0,
            "max_worker_port": 0,
            "include_dashboard": False,
        }
        settings |= {"gcs_server_port": self._port} if name == HEAD else {"gcs_address": self.address}
        command = [sys.executable, "-m", "evosearch.devcluster.ray_node", json.dumps(settings)]
        process = start(command, self.environment() | environment, self._folder, log)
        self._processes[name] = process
        deadline = time.monotonic() + UP_S
        while not (folder / "ray_current_cluster").exists():  # the last that a node does
            if not process.running or time.monotonic() > deadline:
                raise SearchError(f"node {name} does not come up:\n{last_lines(log)}")
            time.sleep(0.1)

    def pids(self, name: str) -> set[int]:
        """Of all that runs on a node now."""
        return {process.pid for process in self._processes[name].members()}

    def workers(self) -> list[psutil.Process]:
        """The workers of all nodes."""
        found = []
        for process in [one for node in self._processes.values() for one in node.members()]:
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::Actor"):
                    found.append(process)
        return found

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """The workers that are there now do nothing within it: the search lasts until a slow machine has come along."""
        held = self.workers()
        for process in held:
            process.suspend()
        try:
            yield
        finally:
            for process in held:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def lose(self, name: str) -> None:
        """A node stands still, its jobs with it; then it is gone, as when a machine loses power."""
        for process in self._processes[name].members():
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        time.sleep(FROZEN_S)
        self.kill(name)

    def kill(self, name: str) -> None:
        """SIGKILL to a node and all that runs on it."""
        self._processes[name].kill()

    def end(self) -> None:
        """Nothing of it runs or lies about on return."""
        for name in reversed(self._processes):
            self.kill(name)
        shutil.rmtree(self._ray, ignore_errors=True)


def lose_worker(worker: psutil.Process) -> None:
    """A worker stands still, its job with it; then it is gone."""
    worker.suspend()
    time.sleep(FROZEN_S)
    worker.kill()
