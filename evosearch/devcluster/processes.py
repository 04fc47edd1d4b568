"""Processes that outlive the command that starts them, each in its own session with all of its descendants.

A process is identified by its id, the boot id and its start in ticks since boot, so that another process with a reused
id is not mistaken for it. After it has ended, a random mark in the environment identifies its descendants.
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
PORTS = range(20_000, 32_000)  # below the range that Linux uses for outgoing connections
MARK = "EVOSEARCH_STARTED_AS"  # environment variable of every process that `launch` starts
STOP_S = 20.0  # between SIGTERM and SIGKILL
LOG_LINES = 15
# Keeps references, because subprocess warns if the object of a running child is garbage-collected
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Process:
    """First process of a session.

    Attributes:
        pid: Process id.
        ticks: Clock ticks from boot to its start; a time would change when the clock is set.
        boot: Id of the machine's boot.
        mark: Mark in its environment and that of its descendants; empty if `launch` did not start it.
    """

    pid: int
    ticks: int
    boot: str
    mark: str = ""

    @classmethod
    def of(cls, pid: int, mark: str = "") -> Self:
        """Identify the process that currently has this id.

        Raises:
            psutil.NoSuchProcess: There is no such process.
        """
        found = _stat(pid)
        if found is None:
            raise psutil.NoSuchProcess(pid)
        return cls(pid, found.ticks, boot_id(), mark)

    @property
    def started(self) -> float:
        """Start time in seconds since 1970, by the current setting of the machine's clock."""
        return psutil.boot_time() + self.ticks / os.sysconf("SC_CLK_TCK")

    @property
    def running(self) -> bool:
        """Whether this process is alive, as opposed to another one with its id."""
        found = _stat(self.pid)
        return self.boot == boot_id() and found is not None and found.ticks == self.ticks and found.alive

    def members(self, known: Container[psutil.Process] = ()) -> list[psutil.Process]:
        """Return its living members: the processes of its session, other marked processes, and their descendants.

        A session has the id of its first process, which is not reused while the session exists. The session is ours if
        its first process is this one, or has ended and any process of the session has the mark or is in `known`. Ray's
        processes overwrite their environment, and so the mark, with a title, so the mark alone is not sufficient.

        Args:
            known: Processes that are known to be members.
        """
        if self.boot != boot_id():
            return []
        alive = [process for process in psutil.process_iter() if (stat := _stat(process.pid)) and stat.alive]
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
        """Kill all members immediately, as if a machine were lost."""
        while members := self.members(known):
            for process in members:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(members, timeout=1.0)
            known = [*known, *members]

    def stop(self, within_s: float = STOP_S) -> None:
        """Send SIGTERM to the process, which should stop the other members; kill members that remain after a while."""
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
        except OSError:  # the process has ended, or belongs to another user
            return False


def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> Process:
    """Start a command in its own session; its output is appended to a log."""
    popen, process = launch(command, environment, folder, log)
    _children.append(popen)
    return process


def launch(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> tuple["subprocess.Popen[bytes]", Process]:
    """Start a command like `start`; also return its `Popen`, for the exit code."""
    mark = secrets.token_hex(16)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        popen = subprocess.Popen(  # noqa: S603 (our own command)
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
    """Read fields 3 (state) and 22 (starttime) of /proc/PID/stat, see proc_pid_stat(5); None if there is no process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may contain spaces and ')'
    except OSError:
        return None
    return _Stat(fields[0] not in "ZX", int(fields[19]))


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def boot_id() -> str:
    """Return the id of the machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def wait_until(name: str, problem: Callable[[], str | None], process: Process, log: Path, within_s: float) -> None:
    """Wait for a part to become healthy.

    Args:
        name: The part's name.
        problem: Returns why the part is not healthy, or None.
        process: The part's process.
        log: The part's log.
        within_s: Time limit in seconds.

    Raises:
        SearchError: The part ended or took too long; the message ends with the last lines of its log.
    """
    deadline = time.monotonic() + within_s
    while (current := problem()) is not None:
        ended = not process.running
        if ended or time.monotonic() > deadline:
            what = "ended" if ended else f"is not healthy after {within_s:.0f} s ({current})"
            raise SearchError(f"{name} {what}. The end of {log}:\n{last_lines(log)}")
        time.sleep(0.2)


def last_lines(log: Path) -> str:
    """Return the last lines of a log."""
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    return "(no log)"


def free_port(wanted: int | None = None, taken: Sequence[int] = ()) -> int:
    """Return a free port on loopback that is not in `taken`; the wanted one if possible."""
    candidates = random.sample(PORTS, 200)
    for port in [wanted, *candidates] if wanted else candidates:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            if port not in taken:
                return port
    raise SearchError(f"no free port among {len(candidates)} tried from {PORTS.start} to {PORTS.stop - 1}")


def listening(processes: Iterable[psutil.Process]) -> list[tuple[str, int, str]]:
    """Return the listening sockets of some processes as (address, port, process name)."""
    found: list[tuple[str, int, str]] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            name, sockets = process.name(), process.net_connections("tcp")
            found += [(at.laddr.ip, at.laddr.port, name) for at in sockets if at.status == psutil.CONN_LISTEN]
    return sorted(found)
