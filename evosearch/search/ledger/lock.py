"""One writer a search: an operating-system lock beside an SQLite ledger, an advisory lock in PostgreSQL.

Both are gone with the process that held them, however it ended, so a killed search is resumed without ado.
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

from evosearch.errors import LedgerError

HOST_CHARS = 40  # of a host's name; PostgreSQL keeps 63 bytes of an application's, with process and `evosearch`

_held: set[str] = set()  # record locks do not exclude their own process: this does


@contextmanager
def file_lock(ledger: Path, search_id: str, where: str) -> Iterator[None]:
    """Hold the lock of one search in an SQLite ledger.

    Raises:
        LedgerError: another process holds it, or this one already does, or its disk is full.
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
            next = "Make room on its disk, then run the same command: what was recorded is safe"
            raise LedgerError(where, f"{path} cannot be written: {exc.strerror}", next=next) from None
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still locked: nobody can have taken it meanwhile
        os.close(descriptor)
        _held.discard(key)


def file_lock_holder(ledger: Path, search_id: str) -> str | None:
    """Who writes to a search now, as far as this machine can tell: the lock is tried and given back at once."""
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


def _path(ledger: Path, search_id: str) -> Path:
    return Path(f"{ledger.resolve()}.{search_id[:12]}.lock")


def _locked(path: Path, where: str) -> int:
    """A descriptor of the lock file, locked. A record lock, as children of a fork do not inherit it."""
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
        os.close(descriptor)  # its holder removed it between our opening and our locking: take the new one


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
    """A connection that holds an advisory lock: its process at the server, and what is known of it."""

    backend: int
    since: datetime | None  # when it began, by the server's clock; None where another user's, who is not shown
    about: str


def try_advisory(connection: sa.Connection, search_id: str) -> bool:
    """Take the lock of one search for as long as the connection lives; False where another connection has it."""
    return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_key(search_id)))))


def release_advisory(connection: sa.Connection, search_id: str) -> None:
    connection.execute(sa.select(sa.func.pg_advisory_unlock(_key(search_id))))


def advisory_holder(connection: sa.Connection, search_id: str) -> Holder | None:
    """Who holds the lock of a search. PostgreSQL lists a 64-bit key as two unsigned halves."""
    key = _key(search_id)
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
    if row.backend_start is not None:  # another user's is not shown
        about += f", since {row.backend_start.astimezone().isoformat(timespec='seconds')}"
    return Holder(row.pid, row.backend_start, about)


def who_is(connection: sa.Connection) -> tuple[int, datetime | None]:
    """A connection as `Holder` names it: its process at the server, and when that began."""
    row = connection.execute(
        sa.text("SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()")
    ).one()
    return row.pid, row.backend_start


def _key(search_id: str) -> int:
    return int.from_bytes(hashlib.sha256(search_id.encode()).digest()[:8], "big", signed=True)


def this_host() -> str:
    """This machine's name, in the room that a connection's name has at a server. A long one is not cut: pods differ at
    the end.
    """
    name = socket.gethostname()
    if len(name) <= HOST_CHARS:
        return name
    return f"{name[: HOST_CHARS - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def taken(where: str, holder: str) -> LedgerError:
    return LedgerError(where, f"this search is being run by {holder}", next="Wait for it, or stop it first")


def this_process() -> str:
    return f"this process ({os.getpid()})"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
