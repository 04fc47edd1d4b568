"""One writer a search: an operating-system lock beside an SQLite ledger, an advisory lock in PostgreSQL.

Both are gone with the process that held them, however it ended, so a killed search is resumed without ado.
"""

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from evosearch.errors import LedgerError
from evosearch.search.ledger_store import sqlite_path

_held: set[str] = set()  # record locks do not exclude their own process: this does


@contextmanager
def holding(engine: Engine, url: sa.URL, search_id: str, where: str) -> Iterator[None]:
    """Hold the lock of one search.

    Raises:
        LedgerError: another process holds it, or this one already does.
    """
    path = sqlite_path(url)
    if path is None:
        with _advisory(engine, search_id, where):
            yield
    else:
        with _file_lock(Path(f"{path.resolve()}.{search_id[:12]}.lock"), where):
            yield


def holder(url: sa.URL, search_id: str) -> str | None:
    """Who writes to a search now, as far as this machine can tell; None where nobody does.

    For an SQLite ledger: the lock is tried and given back at once. PostgreSQL's locks are seen by `acquire` alone.
    """
    path = sqlite_path(url)
    if path is None:
        return None
    path = Path(f"{path.resolve()}.{search_id[:12]}.lock")
    if str(path) in _held:
        return f"this process ({os.getpid()})"
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


@contextmanager
def _file_lock(path: Path, where: str) -> Iterator[None]:
    key = str(path)
    if key in _held:
        raise _taken(where, f"this process ({os.getpid()})")
    descriptor = _locked(path, where)
    _held.add(key)
    try:
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still locked: nobody can have taken it meanwhile
        os.close(descriptor)
        _held.discard(key)


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
            raise _taken(where, holder) from None
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


@contextmanager
def _advisory(engine: Engine, search_id: str, where: str) -> Iterator[None]:
    """A PostgreSQL advisory lock, held by a connection of its own."""
    key = int.from_bytes(hashlib.sha256(search_id.encode()).digest()[:8], "big", signed=True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        about = f"evosearch {os.getpid()} on {socket.gethostname()}"[:63]
        connection.execute(sa.select(sa.func.set_config("application_name", about, False)))
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
            raise _taken(where, _advisory_holder(connection, key))
        try:
            yield
        finally:
            with suppress(sa.exc.DBAPIError):  # a connection that was lost has released the lock already
                connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))
                connection.execute(sa.select(sa.func.set_config("application_name", "", False)))


def _advisory_holder(connection: sa.Connection, key: int) -> str:
    """Who holds the lock. PostgreSQL lists a 64-bit key as two unsigned halves."""
    high, low = (key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF
    query = sa.text(
        "SELECT a.application_name, a.backend_start FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = :high AND l.objid::bigint = :low"
    )
    row = connection.execute(query, {"high": high, "low": low}).first()
    if row is None:
        return "another process"
    return f"{row[0].replace('evosearch', 'process')}, since {row[1].isoformat(timespec='seconds')}"


def _taken(where: str, holder: str) -> LedgerError:
    return LedgerError(where, f"this search is being run by {holder}", next="Wait for it, or stop it first")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
