"""A cluster on one machine: PostgreSQL, an MLflow server with accounts, a Ray head and worker nodes.

Everything listens on loopback, needs a password or a token, and lies in one folder. Whatever died is started again by
`up`; its data, secrets and, where they are free, its ports are what they were.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from evosearch.devcluster import environment, mlflow_server, ray_nodes
from evosearch.devcluster.places import Places, State
from evosearch.devcluster.postgres import Postgres, find_programs
from evosearch.devcluster.private import secret
from evosearch.devcluster.processes import HOST, free_port, listening, start, wait_until
from evosearch.errors import InputError, SearchError

LEDGER = "evosearch"  # database
POSTGRES, MLFLOW = "postgres", "mlflow"
SCRIPTS = Path(__file__).resolve().parents[1]
NODE_TRIES = 3
WELL_S = 400.0  # for one part to be well: MLflow makes its tables, Ray imports much, and machines are slow and busy


@dataclass(frozen=True)
class PartStatus:
    """One part as it is now."""

    name: str
    pid: int | None
    address: str
    since: float | None  # seconds since 1970
    lacks: str | None  # None: it is well


class Cluster:
    """The cluster of one folder."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        """Args:
        say: is told of each part that was started.
        """
        self.places = Places(folder.resolve())
        self.postgres = Postgres(self.places.folder / "postgres")
        self._say = say

    @property
    def state(self) -> State:
        return State.load(self.places)

    # --- up and down --------------------------------------------------------------------------------------------

    def up(self, nodes: int | None = None, cpus_per_node: int | None = None, gpus_per_node: int | None = None) -> None:
        """Start what does not run, and wait until all of it is well.

        Args:
            nodes: of workers; those beyond them are stopped. Default: as many as before, or 2.
            cpus_per_node, gpus_per_node: default: as before, or an even share of the CPUs, and no GPU.

        Raises:
            InputError: PostgreSQL, or what MLflow's accounts need, is not installed; the folder cannot be used; there
                are too few GPUs.
            SearchError: a part does not start; the message ends with the last lines of its log.
        """
        if find_programs() is None:
            what = "PostgreSQL's server programs (initdb, postgres) are not installed"
            raise InputError("scripts/cluster", what, next="apt-get install postgresql, or put them on PATH")
        mlflow_server.check_installed()
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
            environment.write(self.places, state, self.postgres)

    def down(self, remove: bool = False) -> None:
        """Stop all of it; nothing of it runs on return. `remove` deletes what it made, databases and all.

        Raises:
            InputError: there is no cluster in the folder.
        """
        with self.places.locked():
            state = self.state
            # Nodes before their head, MLflow after them: what searches still have to say gets there
            for name in [*self._nodes(state), *(name for name in (ray_nodes.HEAD, MLFLOW) if name in state.processes)]:
                state.processes.pop(name).stop()
                state.save(self.places)
                self._say(f"{name} stopped")
            if self.postgres.running:
                self.postgres.stop()
                self._say(f"{POSTGRES} stopped")
            if state.ray:
                shutil.rmtree(state.ray, ignore_errors=True)  # sockets, and logs of nodes that are gone
                state.ray = ""
                state.save(self.places)
            if remove and (left := self.places.remove()):
                self._say(f"{self.places.folder} is kept: it holds {', '.join(left)}, which is no part of a cluster")

    def kill_node(self, name: str) -> None:
        """SIGKILL to a node and all that runs on it at once, as when a machine is lost."""
        self.state.processes[name].kill()

    # --- what is there ------------------------------------------------------------------------------------------

    def status(self) -> list[PartStatus]:
        """Every part that should run, PostgreSQL first."""
        state, server = self.state, self.postgres.process
        since = server.create_time() if server else None
        address = self._address(state, POSTGRES)
        parts = [PartStatus(POSTGRES, server.pid if server else None, address, since, self._lacks_postgres())]
        for name in (MLFLOW, ray_nodes.HEAD, *(ray_nodes.worker(index + 1) for index in range(state.nodes))):
            process = state.processes.get(name)
            if process is None or not process.running:
                parts.append(PartStatus(name, None, self._address(state, name), None, "does not run"))
            else:
                lacks = self._lacks(state, name)
                parts.append(PartStatus(name, process.pid, self._address(state, name), process.started, lacks))
        return parts

    def processes(self) -> Iterator[psutil.Process]:
        """Every process of the cluster, with what runs on its nodes."""
        for process in self.state.processes.values():
            yield from process.members()
        if (server := self.postgres.process) is not None:
            yield from (server, *server.children(recursive=True))

    def listening(self) -> list[tuple[str, int, str]]:
        """What all of it listens on: (address, port, name of the process)."""
        return listening(list(self.processes()))

    def leaks(self) -> list[str]:
        """The files of the folder that hold one of its secrets, beside those that are there for it."""
        meant = {self.places.environment, self.postgres.passfile}
        secrets = [file.read_bytes() for file in self.places.secrets.iterdir() if file.suffix != ".ini"]
        secrets.append(self.postgres.passfile.read_bytes().strip().rpartition(b":")[2])
        roots = {self.places.folder, self.state.ray_folder(self.places)}
        files = {file for root in roots for file in root.rglob("*") if file.is_file()} - meant
        own = (self.places.secrets, self.postgres.data)  # the databases hold hashes of them
        return sorted(
            str(file)
            for file in files
            if not any(file.is_relative_to(folder) for folder in own) and _holds(file, secrets)
        )

    def ledger(self) -> str:
        """The URL of the database for searches, for `ledger:` of a spec."""
        return self.postgres.url(LEDGER)

    # --- the parts ----------------------------------------------------------------------------------------------

    def _up_postgres(self, state: State) -> None:
        began = time.monotonic()
        if not self.postgres.running:
            self.postgres.start()
            self._say(f"{POSTGRES} at {HOST}:{self.postgres.port} ({time.monotonic() - began:.1f} s)")
        for name in (LEDGER, mlflow_server.STORE, mlflow_server.ACCOUNTS):
            self.postgres.create_database(name)
        if state.ports.get(POSTGRES) != self.postgres.port:
            if MLFLOW in state.processes:
                state.processes.pop(MLFLOW).stop()  # it would look for its databases at the old port
            state.ports[POSTGRES] = self.postgres.port

    def _up_mlflow(self, state: State) -> None:
        """Wait for MLflow, which was started, and make the account of the searches."""
        self._wait(state, MLFLOW, lambda: mlflow_server.answers(state))
        mlflow_server.make_account(self.places, state)
        self._wait(state, MLFLOW, lambda: self._lacks(state, MLFLOW))

    def _up_parts(self, state: State) -> None:
        """MLflow and Ray's head together, for both are slow to import, then the nodes together."""
        secret(self.places.token)
        head = state.processes.get(ray_nodes.HEAD)
        names = [ray_nodes.worker(index + 1) for index in range(state.nodes)]
        for name in self._nodes(state):
            # Another head is another cluster: what belonged to the old one ends with it
            if name not in names or head is None or not head.running:
                state.processes.pop(name).stop()
        began = time.monotonic()
        server = mlflow_server.command(self.places, state, self.postgres)
        new = [self._start(state, MLFLOW, server, mlflow_server.environment(self.places, self.postgres))]
        new.append(self._start_node(state, ray_nodes.HEAD))
        self._up_mlflow(state)
        self._tell(new[0], state, MLFLOW, began)
        self._wait_for_node(state, ray_nodes.HEAD)
        self._tell(new[1], state, ray_nodes.HEAD, began)
        began = time.monotonic()
        for name, started in [(name, self._start_node(state, name)) for name in names]:
            self._wait_for_node(state, name)
            self._tell(started, state, name, began)

    def _start_node(self, state: State, name: str) -> bool:
        """Start a Ray node that does not run; whether it was started."""
        settings = environment.of_nodes(self.places, state, self.postgres) | {"PYTHONPATH": str(SCRIPTS)}
        settings |= ray_nodes.devices(name, state.gpus_per_node)
        return self._start(state, name, ray_nodes.command(self.places, state, name), settings)

    def _wait_for_node(self, state: State, name: str) -> None:
        """Wait for a node. Ray gives up by itself after 30 s, which are few on a busy machine: it is started again."""
        for left in reversed(range(NODE_TRIES)):
            try:
                return self._wait(state, name, lambda: self._lacks(state, name))
            except SearchError:
                if left == 0 or state.processes[name].running:
                    raise
            self._start_node(state, name)
        return None

    def _start(self, state: State, name: str, command: list[str], settings: dict[str, str]) -> bool:
        """Start a part that does not run; whether it was started."""
        present = state.processes.get(name)
        if present is not None and present.running:
            return False
        if present is not None:
            present.kill()  # what is left of it
        state.processes[name] = start(command, settings, self.places.folder, self.places.log(name))
        state.save(self.places)
        return True

    def _wait(self, state: State, name: str, lacks: Callable[[], str | None]) -> None:
        wait_until(name, lacks, state.processes[name], self.places.log(name), WELL_S)

    def _tell(self, started: bool, state: State, name: str, began: float) -> None:
        if started:
            self._say(f"{name} at {self._address(state, name)} ({time.monotonic() - began:.1f} s)")

    def _choose_ports(self, state: State) -> None:
        """Ports of parts that do not run: those they had, where they are still free."""
        for part, names in {MLFLOW: ("mlflow",), ray_nodes.HEAD: ("ray", "dashboard")}.items():
            process = state.processes.get(part)
            if process is None or not process.running:
                for name in names:
                    taken = [port for other, port in state.ports.items() if other != name]
                    state.ports[name] = free_port(state.ports.get(name), taken)
        state.save(self.places)

    def _lacks(self, state: State, name: str) -> str | None:
        if name == MLFLOW:
            return mlflow_server.lacks(self.places, state)
        return ray_nodes.lacks(self.places, state, name)

    def _address(self, state: State, name: str) -> str:
        """Where a client finds a part; of a node of workers only the machine."""
        if name == POSTGRES and POSTGRES in state.ports:
            return f"{HOST}:{state.ports[POSTGRES]}"
        ports = {MLFLOW: "mlflow", ray_nodes.HEAD: "dashboard"}
        port = state.ports.get(ports.get(name, ""))
        return f"http://{HOST}:{port}" if port else HOST

    def _nodes(self, state: State) -> list[str]:
        return sorted(state.processes.keys() - {MLFLOW, ray_nodes.HEAD})

    def _lacks_postgres(self) -> str | None:
        if not self.postgres.running:
            return "does not run"
        try:
            self.postgres.connect(LEDGER).close()
        except psycopg.Error as exc:
            return str(exc).strip().splitlines()[-1]
        return None


def _holds(file: Path, secrets: list[bytes]) -> bool:
    try:
        content = file.read_bytes()
    except OSError:  # of a process that has ended since
        return False
    return any(secret in content for secret in secrets)


def cores() -> int:
    return len(os.sched_getaffinity(0))
