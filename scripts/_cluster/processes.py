"""Processes that outlive the command that starts them, each with all its descendants in a session of its own.

One is known by its process id and the time it started: an id that was given to somebody else since is not taken for it.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from evosearch.errors import SearchError

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below those that Linux hands out for outgoing connections
CLOCK_S = 0.05  # start times that differ by less are the same
STOP_S = 20.0  # between SIGTERM and SIGKILL
LOG_LINES = 15
_children: list[subprocess.Popen[bytes]] = []  # held: one that is let go while it runs is warned of


@dataclass(frozen=True)
class Process:
    """A session's first process, as recorded."""

    pid: int
    started: float  # seconds since 1970

    @property
    def running(self) -> bool:
        try:
            found = psutil.Process(self.pid)
            alive = found.status() != psutil.STATUS_ZOMBIE
            return alive and abs(found.create_time() - self.started) < CLOCK_S
        except psutil.NoSuchProcess:
            return False

    def members(self) -> list[psutil.Process]:
        """Everything alive in the session, though its first process be gone, and what descends from it elsewhere."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                own = os.getsid(process.pid) == self.pid and process.create_time() >= self.started - CLOCK_S
                if own and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = process
                    found |= {child.pid: child for child in process.children(recursive=True)}
        return list(found.values())

    def kill(self) -> None:
        """SIGKILL to all of it at once, as when a machine is lost."""
        while members := self.members():
            for process in members:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(members, timeout=1.0)

    def stop(self, within_s: float = STOP_S) -> None:
        """SIGTERM to its first process, which ends the others; SIGKILL to whatever is left after a while."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.kill()


def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> Process:
    """Start a command in a session of its own; what it says is appended to a log."""
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    _children.append(process)
    return Process(process.pid, psutil.Process(process.pid).create_time())


def wait_until(name: str, healthy: Callable[[], str | None], process: Process, log: Path, within_s: float) -> None:
    """Wait for a part to be well.

    Args:
        healthy: what it lacks; None once it is well.

    Raises:
        SearchError: it ended or took too long; the message ends with the last lines of its log.
    """
    deadline = time.monotonic() + within_s
    while (lacks := healthy()) is not None:
        ended = not process.running
        if ended or time.monotonic() > deadline:
            what = "ended" if ended else f"is not well after {within_s:.0f} s ({lacks})"
            raise SearchError(f"{name} {what}. The end of {log}:\n{last_lines(log)}")
        time.sleep(0.2)


def last_lines(log: Path) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    return "(no log)"


def free_port(wanted: int | None = None, taken: Sequence[int] = ()) -> int:
    """A port on loopback that nobody listens on: the wanted one where it is free."""
    candidates = random.sample(PORTS, 200)
    for port in [wanted, *candidates] if wanted else candidates:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            if port not in taken:
                return port
    raise SearchError(f"no free port among {len(candidates)} tried from {PORTS.start} to {PORTS.stop - 1}")


def listening(processes: Iterable[psutil.Process]) -> list[tuple[str, int, str]]:
    """The addresses that some processes listen on: (address, port, name of the process)."""
    found: list[tuple[str, int, str]] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            name, sockets = process.name(), process.net_connections("tcp")
            found += [(at.laddr.ip, at.laddr.port, name) for at in sockets if at.status == psutil.CONN_LISTEN]
    return sorted(found)
