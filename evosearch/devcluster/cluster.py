"""Start, inspect and stop a cluster on one machine: PostgreSQL, an MLflow server, a Ray head and worker nodes.

All parts listen on loopback only, require a password or a token, and keep their data in one folder. `up` restarts
parts that have died, with the same data, secrets and, if still free, ports.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from evosearch.devcluster import mlflow_server, process_environment, ray_nodes
from evosearch.devcluster.places import Places, State
from evosearch.devcluster.postgres import Postgres, find_programs
from evosearch.devcluster.private import secret
from evosearch.devcluster.processes import HOST, free_port, listening, start, wait_until
from evosearch.errors import InputError, SearchError
from evosearch.tracking.server import check_installed

LEDGER = "evosearch"  # database
POSTGRES, MLFLOW = "postgres", "mlflow"
NODE_TRIES = 3
HEALTHY_S = 400.0  # time limit for a part to become healthy: MLflow creates tables, Ray imports many modules


@dataclass(frozen=True)
class PartStatus:
    """Current state of one part."""

    name: str
    pid: int | None
    address: str
    since: float | None  # seconds since 1970
    problem: str | None  # None if healthy


class Cluster:
    """The cluster in a folder.

    Args:
        folder: Folder for all data; created by `up`.
        notice: Called with a line for each part that is started or stopped.
    """

    def __init__(self, folder: Path, notice: Callable[[str], None] = lambda line: None) -> None:
        self.places = Places(folder.resolve())
        self.postgres = Postgres(self.places.folder / "postgres")
        self._notice = notice

    @property
    def state(self) -> State:
        """Processes and ports as recorded in the folder."""
        return State.load(self.places)

    # --- up and down --------------------------------------------------------------------------------------------

    def up(self, nodes: int | None = None, cpus_per_node: int | None = None, gpus_per_node: int | None = None) -> None:
        """Start the parts that are not running, and wait until all are healthy.

        Args:
            nodes: Number of worker nodes; surplus ones are stopped. Default: as before, or 2.
            cpus_per_node: Default: as before, or an even share of the CPUs.
            gpus_per_node: Default: as before, or none.

        Raises:
            InputError: PostgreSQL or MLflow's server extras are not installed, the folder cannot be used, or there are
                too few GPUs.
            SearchError: A part does not start; the message ends with the last lines of its log.
        """
        if find_programs() is None:
            what = "PostgreSQL's server programs (initdb, postgres) are not installed"
            raise InputError("evosearch cluster", what, next="apt-get install postgresql, or put them on PATH")
        check_installed("evosearch cluster")
        self.places.make()
        with self.places.locked():
            state = self.state
            state.nodes = nodes or state.nodes or 2
            state.cpus_per_node = cpus_per_node or state.cpus_per_node or max(1, cores() // state.nodes)
            state.gpus_per_node = state.gpus_per_node if gpus_per_node is None else gpus_per_node
            ray_nodes.check_cards(state.nodes, state.gpus_per_node)
            self._up_postgres(state)
            self._choose_ports(state)
            self._up_parts(state)
            process_environment.write(self.places, state, self.postgres)

    def down(self, remove: bool = False) -> None:
        """Stop every process of the cluster.

        Args:
            remove: Also delete everything that the cluster created, including the databases.

        Raises:
            InputError: There is no cluster in the folder.
        """
        with self.places.locked():
            state = self.state
            # Nodes before their head, and MLflow last, so that searches can still log to it
            for name in [*self._nodes(state), *(name for name in (ray_nodes.HEAD, MLFLOW) if name in state.processes)]:
                state.processes.pop(name).stop()
                state.save(self.places)
                self._notice(f"{name} stopped")
            if self.postgres.running:
                self.postgres.stop()
                self._notice(f"{POSTGRES} stopped")
            if state.ray:
                shutil.rmtree(state.ray, ignore_errors=True)  # sockets and logs of the nodes
                state.ray = ""
                state.save(self.places)
            if remove and (left := self.places.remove()):
                self._notice(f"{self.places.folder} is kept: it contains {', '.join(left)}, not part of the cluster")

    def kill_node(self, name: str) -> None:
        """Kill a node and all processes on it immediately, as if a machine were lost."""
        self.state.processes[name].kill()

    # --- inspection ------------------------------------------------------------------------------------------

    def status(self) -> list[PartStatus]:
        """Return the status of every part that should be running, PostgreSQL first."""
        state, server = self.state, self.postgres.process
        since = server.create_time() if server else None
        address = self._address(state, POSTGRES)
        parts = [PartStatus(POSTGRES, server.pid if server else None, address, since, self._problem_of_postgres())]
        for name in (MLFLOW, ray_nodes.HEAD, *(ray_nodes.worker(index + 1) for index in range(state.nodes))):
            process = state.processes.get(name)
            if process is None or not process.running:
                parts.append(PartStatus(name, None, self._address(state, name), None, "not running"))
            else:
                problem = self._problem(state, name)
                parts.append(PartStatus(name, process.pid, self._address(state, name), process.started, problem))
        return parts

    def processes(self) -> Iterator[psutil.Process]:
        """Yield every process of the cluster, including jobs and workers on its nodes."""
        for process in self.state.processes.values():
            yield from process.members()
        if (server := self.postgres.process) is not None:
            yield from (server, *server.children(recursive=True))

    def listening(self) -> list[tuple[str, int, str]]:
        """Return every listening socket as (address, port, process name)."""
        return listening(list(self.processes()))

    def leaks(self) -> list[str]:
        """Return the files that contain a secret, except for those whose purpose it is."""
        intended = {self.places.environment, self.postgres.passfile}
        secrets = [file.read_bytes() for file in self.places.secrets.iterdir() if file.suffix != ".ini"]
        secrets.append(self.postgres.passfile.read_bytes().strip().rpartition(b":")[2])
        roots = {self.places.folder, self.state.ray_folder(self.places)}
        files = {file for root in roots for file in root.rglob("*") if file.is_file()} - intended
        own = (self.places.secrets, self.postgres.data)  # the databases contain hashes of secrets
        return sorted(
            str(file)
            for file in files
            if not any(file.is_relative_to(folder) for folder in own) and _contains(file, secrets)
        )

    def ledger(self) -> str:
        """Return the URL of the ledgers' database, for `ledger:` in a spec."""
        return self.postgres.url(LEDGER)

    # --- parts ----------------------------------------------------------------------------------------------

    def _up_postgres(self, state: State) -> None:
        began = time.monotonic()
        if not self.postgres.running:
            self.postgres.start()
            self._notice(f"{POSTGRES} at {HOST}:{self.postgres.port} ({time.monotonic() - began:.1f} s)")
        for name in (LEDGER, mlflow_server.STORE, mlflow_server.ACCOUNTS):
            self.postgres.create_database(name)
        if state.ports.get(POSTGRES) != self.postgres.port:
            if MLFLOW in state.processes:
                state.processes.pop(MLFLOW).stop()  # it uses the old port
            state.ports[POSTGRES] = self.postgres.port

    def _up_mlflow(self, state: State) -> None:
        """Wait for MLflow to start, and create the account for searches."""
        self._wait(state, MLFLOW, lambda: mlflow_server.startup_problem(state))
        mlflow_server.create_account(self.places, state)
        self._wait(state, MLFLOW, lambda: self._problem(state, MLFLOW))

    def _up_parts(self, state: State) -> None:
        """Start MLflow and Ray's head in parallel, since both import slowly; then start the nodes in parallel."""
        secret(self.places.token)
        head = state.processes.get(ray_nodes.HEAD)
        names = [ray_nodes.worker(index + 1) for index in range(state.nodes)]
        for name in self._nodes(state):
            # After the death of their head, nodes no longer belong to a cluster
            if name not in names or head is None or not head.running:
                state.processes.pop(name).stop()
        began = time.monotonic()
        server = mlflow_server.command(self.places, state, self.postgres)
        new = [self._start(state, MLFLOW, server, mlflow_server.environment(self.places, self.postgres))]
        new.append(self._start_node(state, ray_nodes.HEAD))
        self._up_mlflow(state)
        self._report(new[0], state, MLFLOW, began)
        self._wait_for_node(state, ray_nodes.HEAD)
        self._report(new[1], state, ray_nodes.HEAD, began)
        began = time.monotonic()
        for name, started in [(name, self._start_node(state, name)) for name in names]:
            self._wait_for_node(state, name)
            self._report(started, state, name, began)

    def _start_node(self, state: State, name: str) -> bool:
        """Start a Ray node unless it is running; return whether it was started."""
        settings = process_environment.of_nodes(self.places, state, self.postgres)
        settings |= ray_nodes.devices(name, state.gpus_per_node)
        return self._start(state, name, ray_nodes.command(self.places, state, name), settings)

    def _wait_for_node(self, state: State, name: str) -> None:
        """Wait for a node, and restart it a few times: Ray's own limit of 30 s is too short on a busy machine."""
        for left in reversed(range(NODE_TRIES)):
            try:
                return self._wait(state, name, lambda: self._problem(state, name))
            except SearchError:
                if left == 0 or state.processes[name].running:
                    raise
            self._start_node(state, name)
        return None

    def _start(self, state: State, name: str, command: list[str], settings: dict[str, str]) -> bool:
        """Start a part unless it is running; return whether it was started."""
        present = state.processes.get(name)
        if present is not None and present.running:
            return False
        if present is not None:
            present.kill()  # its remaining descendants
        state.processes[name] = start(command, settings, self.places.folder, self.places.log(name))
        state.save(self.places)
        return True

    def _wait(self, state: State, name: str, problem: Callable[[], str | None]) -> None:
        wait_until(name, problem, state.processes[name], self.places.log(name), HEALTHY_S)

    def _report(self, started: bool, state: State, name: str, began: float) -> None:
        if started:
            self._notice(f"{name} at {self._address(state, name)} ({time.monotonic() - began:.1f} s)")

    def _choose_ports(self, state: State) -> None:
        """Choose ports for parts that are not running: the previous ones if they are still free."""
        for part, names in {MLFLOW: ("mlflow",), ray_nodes.HEAD: ("ray", "dashboard")}.items():
            process = state.processes.get(part)
            if process is None or not process.running:
                for name in names:
                    taken = [port for other, port in state.ports.items() if other != name]
                    state.ports[name] = free_port(state.ports.get(name), taken)
        state.save(self.places)

    def _problem(self, state: State, name: str) -> str | None:
        if name == MLFLOW:
            return mlflow_server.problem(self.places, state)
        return ray_nodes.problem(self.places, state, name)

    def _address(self, state: State, name: str) -> str:
        """Return a part's address for clients; a worker node has none except for the machine's."""
        if name == POSTGRES and POSTGRES in state.ports:
            return f"{HOST}:{state.ports[POSTGRES]}"
        ports = {MLFLOW: "mlflow", ray_nodes.HEAD: "dashboard"}
        port = state.ports.get(ports.get(name, ""))
        return f"http://{HOST}:{port}" if port else HOST

    def _nodes(self, state: State) -> list[str]:
        return sorted(state.processes.keys() - {MLFLOW, ray_nodes.HEAD})

    def _problem_of_postgres(self) -> str | None:
        if not self.postgres.running:
            return "not running"
        try:
            self.postgres.connect(LEDGER).close()
        except psycopg.Error as exc:
            return str(exc).strip().splitlines()[-1]
        return None


def _contains(file: Path, secrets: list[bytes]) -> bool:
    try:
        content = file.read_bytes()
    except OSError:  # removed in the meantime
        return False
    return any(secret in content for secret in secrets)


def cores() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
