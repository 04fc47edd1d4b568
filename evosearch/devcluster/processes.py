"""Processes that outlive the command that starts them, each with all its descendants in a session of its own.

One is known by its process id, the boot, and its start in ticks since then: an id that was given to somebody else since
is not taken for it. A random mark in the environment tells what belongs to it once it is gone.
"""

import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from evosearch.errors import SearchError

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below those that Linux hands out for outgoing connections
MARK = "EVOSEARCH_STARTED_AS"  # in the environment of what is started here
STOP_S = 20.0  # between SIGTERM and SIGKILL
LOG_LINES = 15
_children: list[subprocess.Popen[bytes]] = []  # held: one that is let go while it runs is warned of


@dataclass(frozen=True)
class Process:
    """A session's first process, as recorded."""

    pid: int
    ticks: int  # of the clock between boot and its start: a date would change whenever the machine's clock is set
    boot: str  # which boot of the machine
    mark: str = ""  # in the environment of it and what it starts; empty: it was not started by `launch`

    @classmethod
    def of(cls, pid: int, mark: str = "") -> Self:
        """The process that has an id now.

        Raises:
            psutil.NoSuchProcess: nobody has it.
        """
        found = _stat(pid)
        if found is None:
            raise psutil.NoSuchProcess(pid)
        return cls(pid, found.ticks, boot_id(), mark)

    @property
    def started(self) -> float:
        """When, in seconds since 1970, by the machine's clock as it is set now."""
        return psutil.boot_time() + self.ticks / os.sysconf("SC_CLK_TCK")

    @property
    def running(self) -> bool:
        found = _stat(self.pid)
        return self.boot == boot_id() and found is not None and found.ticks == self.ticks and found.alive

    def members(self, known: Container[psutil.Process] = ()) -> list[psutil.Process]:
        """Everything alive that it started: its session, what has its mark elsewhere, and what descends from these.

        A session's id is its first process's, and nobody else's while the session lasts. It is ours while that process
        is; afterwards, if somebody in it has the mark or is `known` to be ours: whoever writes a title over its own
        environment, as Ray's processes do, shows no mark.
        """
        if self.boot != boot_id():
            return []
        alive = [process for process in psutil.process_iter() if (found := _stat(process.pid)) and found.alive]
        session = [process for process in alive if _session(process.pid) == self.pid]
        marked = [process for process in alive if self._has_mark(process.pid)]
        first = _stat(self.pid)
        if first is not None:
            ours = first.ticks == self.ticks
        else:
            ours = any(process in marked or process in known for process in session)
        found = {process.pid: process for process in [*marked, *(session if ours else ())]}
        for process in list(found.values()):
            with suppress(psutil.NoSuchProcess):
                found |= {child.pid: child for child in process.children(recursive=True)}
        return list(found.values())

    def kill(self, known: Sequence[psutil.Process] = ()) -> None:
        """SIGKILL to all of it at once, as when a machine is lost."""
        while members := self.members(known):
            for process in members:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(members, timeout=1.0)
            known = [*known, *members]

    def stop(self, within_s: float = STOP_S) -> None:
        """SIGTERM to its first process, which ends the others; SIGKILL to whatever is left after a while."""
        known = self.members()
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        while self.members(known) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.kill(known)

    def _has_mark(self, pid: int) -> bool:
        if not self.mark:
            return False
        try:
            return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            return False


def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> Process:
    """Start a command in a session of its own; what it says is appended to a log."""
    popen, process = launch(command, environment, folder, log)
    _children.append(popen)
    return process


def launch(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> tuple["subprocess.Popen[bytes]", Process]:
    """As `start`, for whoever wants its exit code."""
    mark = secrets.token_hex(16)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        popen = subprocess.Popen(
            list(command),
            env={**environment, MARK: mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    return popen, Process.of(popen.pid, mark)


class _Stat(NamedTuple):
    alive: bool
    ticks: int


def _stat(pid: int) -> _Stat | None:
    """From /proc/PID/stat (proc_pid_stat(5)): fields 3, state, and 22, starttime; None where there is no process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces and ')'
    except OSError:
        return None
    return _Stat(fields[0] not in "ZX", int(fields[19]))


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


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
