"""Locks that allow one writer per search: a lock file next to an SQLite ledger, an advisory lock in PostgreSQL.

Both disappear with the process that holds them, however it ends, so a killed search can be resumed at once.
"""

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from evosearch.errors import LedgerError, LedgerUnavailableError

HOST_CHARS = (
    40  # longest host name: application_name, which also has `evosearch` and the process id, is cut at 63 bytes
)

_held: set[str] = set()  # searches locked by this process: record locks do not exclude their own process


@contextmanager
def file_lock(ledger: Path, search_id: str, where: str) -> Iterator[None]:
    """Hold the lock of one search in an SQLite ledger.

    Raises:
        LedgerError: Another process or this one holds it already, or its disk is full.
    """
    path = _path(ledger, search_id)
    key = str(path)
    if key in _held:
        raise taken(where, this_process())
    descriptor = _locked(path, where)
    _held.add(key)
    try:
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
        except OSError as exc:
            next = "Free disk space, then run the same command to resume; everything recorded is safe"
            raise LedgerUnavailableError(where, f"{path} cannot be written: {exc.strerror}", next=next) from None
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still locked, so that no other process can have taken it
        os.close(descriptor)
        _held.discard(key)


def file_lock_holder(ledger: Path, search_id: str) -> str | None:
    """Return the process that writes to a search, as far as this machine can tell, by trying the lock."""
    path = _path(ledger, search_id)
    if str(path) in _held:
        return this_process()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _holder(os.pread(descriptor, 4096, 0))
    finally:
        os.close(descriptor)
    return None


def lockers(database: Path) -> list[str]:
    """Name the other processes that hold locks on an SQLite file, as far as this machine shows them.

    The file is not opened to ask: closing it would release the locks that this process has on it.
    """
    files = {f"{database}{suffix}" for suffix in ("", "-wal", "-shm")}
    inodes = {str(os.stat(file).st_ino) for file in files if os.path.exists(file)}
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:  # not on this system
        return []
    held = [line for line in lines if len(line) == 8 and line[5].rpartition(":")[2] in inodes]
    pids = dict.fromkeys(line[4] for line in held if line[4] not in ("-1", "0", str(os.getpid())))
    return [f"process {pid} ({name})" for pid in pids if (name := _program(pid, files)) is not None]


def _program(pid: str, files: set[str]) -> str | None:
    """Return the program of a process; None if its open files are known and none of these is among them."""
    process, real = Path("/proc") / pid, {os.path.realpath(file) for file in files}
    try:
        name = (process / "comm").read_text().strip()
    except OSError:  # it has just ended
        return None
    try:
        opened = {os.path.realpath(entry) for entry in (process / "fd").iterdir()}
    except OSError:  # of another user
        return name
    return name if opened & real else None  # inodes of two file systems may have the same number


def _path(ledger: Path, search_id: str) -> Path:
    return Path(f"{ledger.resolve()}.{search_id[:12]}.lock")


def _locked(path: Path, where: str) -> int:
    """Open and lock the lock file. Uses a record lock, which children of a fork do not inherit."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise LedgerError(where, f"{path} cannot be written: {exc.strerror}") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(os.pread(descriptor, 4096, 0))
            os.close(descriptor)
            raise taken(where, holder) from None
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed it between open and lock: use the new file


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(content: bytes) -> str:
    try:
        about = json.loads(content)
        return f"process {about['pid']} on {about['host']}, since {about['since']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """A connection that holds an advisory lock."""

    backend: int  # process id at the server
    since: datetime | None  # start by the server's clock; None if it belongs to another user
    about: str  # for messages


def try_advisory(connection: sa.Connection, search_id: str) -> bool:
    """Take the lock of one search for as long as the connection lives; return False if another one has it."""
    return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_key(search_id)))))


def release_advisory(connection: sa.Connection, search_id: str) -> None:
    """Release the lock of one search."""
    connection.execute(sa.select(sa.func.pg_advisory_unlock(_key(search_id))))


def advisory_holder(connection: sa.Connection, search_id: str) -> Holder | None:
    """Return the connection that holds the lock of a search."""
    key = _key(search_id)  # which PostgreSQL lists as two unsigned halves
    query = sa.text(
        "SELECT l.pid, a.application_name, a.backend_start FROM pg_catalog.pg_locks l"
        " LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
        " AND l.classid::bigint = :high AND l.objid::bigint = :low"
    )
    row = connection.execute(query, {"high": (key >> 32) & 0xFFFFFFFF, "low": key & 0xFFFFFFFF}).first()
    if row is None:
        return None
    about = (row.application_name or "another process").replace("evosearch", "process", 1)
    if row.backend_start is not None:  # None if it belongs to another user
        about += f", since {row.backend_start.astimezone().isoformat(timespec='seconds')}"
    return Holder(row.pid, row.backend_start, about)


def identify(connection: sa.Connection) -> tuple[int, datetime | None]:
    """Return the process at the server behind a connection, and its start, as in `Holder`."""
    row = connection.execute(
        sa.text("SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()")
    ).one()
    return row.pid, row.backend_start


def _key(search_id: str) -> int:
    return int.from_bytes(hashlib.sha256(search_id.encode()).digest()[:8], "big", signed=True)


def this_host() -> str:
    """Return this machine's name, shortened for the name of a connection at a server.

    Long names get a digest instead of being cut, because names of pods differ at the end.
    """
    name = socket.gethostname()
    if len(name) <= HOST_CHARS:
        return name
    return f"{name[: HOST_CHARS - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def taken(where: str, holder: str) -> LedgerError:
    """Return the error for a search that another process runs."""
    return LedgerError(where, f"this search is being run by {holder}", next="Wait for it, or stop it first")


def this_process() -> str:
    """Name this process in messages."""
    return f"this process ({os.getpid()})"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
