"""Ray nodes of one scenario, each in its own session, on loopback, with token authentication."""

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

from benchmarks._paths import ROOT
from evosearch.devcluster.private import secret
from evosearch.devcluster.process_environment import inherited
from evosearch.devcluster.processes import HOST, Process, free_port, last_lines, start
from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import SearchError

OBJECT_STORE = 80_000_000  # bytes
UP_S = 120.0  # time limit for a node to start on a busy machine
TRIES = 3  # starts of a node: Ray's own limit of 30 s is too short on a busy machine
HEAD = "head"
FROZEN_S = 1.0  # time that a process is suspended before it is killed, so that it has a job


class Nodes:
    """A head node and the nodes that join it."""

    def __init__(self, folder: Path) -> None:
        """Prepare an empty cluster.

        Args:
            folder: Folder of the scenario, for logs and the token.
        """
        self._folder = folder
        self._ray = Path(tempfile.mkdtemp(prefix="evofaults-"))  # a short path, because that of sockets is limited
        self._port = free_port()
        self._processes: dict[str, Process] = {}
        secret(self.token)

    @property
    def address(self) -> str:
        """Address of the head, host:port."""
        return f"{HOST}:{self._port}"

    @property
    def token(self) -> Path:
        """File of the token."""
        return self._folder / "ray-token"

    def environment(self) -> dict[str, str]:
        """Environment of nodes and drivers."""
        ours = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: without it Ray replaces 127.0.0.1
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return inherited(os.environ) | TELEMETRY_OFF | ours

    def add(self, name: str, cpus: int = 0, **environment: str) -> None:
        """Start a node and wait until it is up; start the head first.

        Raises:
            SearchError: The node did not start.
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
        while not (folder / "ray_current_cluster").exists():  # a starting node writes this file last
            if not process.running or time.monotonic() > deadline:
                raise SearchError(f"node {name} did not start:\n{last_lines(log)}")
            time.sleep(0.1)

    def pids(self, name: str) -> set[int]:
        """Ids of all processes that currently run on a node."""
        return {process.pid for process in self._processes[name].members()}

    def workers(self) -> list[psutil.Process]:
        """Worker processes of all nodes."""
        found = []
        for process in [one for node in self._processes.values() for one in node.members()]:
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::Actor"):
                    found.append(process)
        return found

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend the current workers within the context, so that the search does not end before a node has joined."""
        workers = self.workers()
        for process in workers:
            process.suspend()
        try:
            yield
        finally:
            for process in workers:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def lose(self, name: str) -> None:
        """Suspend a node with its jobs, then kill it, as in a power failure."""
        for process in self._processes[name].members():
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        time.sleep(FROZEN_S)
        self.kill(name)

    def kill(self, name: str) -> None:
        """Send SIGKILL to a node and all processes on it."""
        self._processes[name].kill()

    def end(self) -> None:
        """Kill all nodes and delete their files."""
        for name in reversed(self._processes):
            self.kill(name)
        shutil.rmtree(self._ray, ignore_errors=True)


def lose_worker(worker: psutil.Process) -> None:
    """Suspend a worker with its job, then kill it."""
    worker.suspend()
    time.sleep(FROZEN_S)
    worker.kill()
