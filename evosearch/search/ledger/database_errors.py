"""Translation of database errors: messages for the user, and which errors are transient.

Errors are told apart by SQLite's result codes and by SQLSTATE; the words of a message are only shown.
"""

import re
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from evosearch.errors import LedgerError, LedgerUnavailableError
from evosearch.redaction import hidden
from evosearch.search.ledger.lock import lockers
from evosearch.search.ledger.server_access import withheld

# Transient SQLSTATE codes (PostgreSQL, appendix A). 08: connections; 57P0x: the server stops or starts.
_TRANSIENT = {
    "25006",  # read-only: the server has just become a standby
    "25P03",  # the transaction was idle for too long: this process was suspended
    "40001",
    "40P01",  # a deadlock
    "53200",
    "53300",  # too many connections
    "55P03",  # a lock was not available in time
    "57P01",
    "57P02",
    "57P03",
}
_DISK_FULL = "53100"
_NOT_ALLOWED = "42501"
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_READING = (  # I/O errors that more free space does not mend
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_DATA,
)
FREE_DISK_SPACE = "Free disk space, then run the same command to resume; everything recorded is safe"


class NoLedgerError(LedgerError):
    """There is no ledger to read yet."""


class DamagedLedgerError(LedgerError):
    """A ledger whose file or rows are not as they were written."""


def damaged(url: sa.URL, where: str, what: str) -> DamagedLedgerError:
    """Return the error for a ledger with damage.

    Args:
        url: URL of the ledger.
        where: Name of the ledger in errors.
        what: The damage.
    """
    next = "Restore a backup. Without one, evosearch ledger recover saves what is intact; nothing was changed"
    if url.get_backend_name() != "sqlite":
        next = "Restore a backup of the database; nothing was changed"
    return DamagedLedgerError(where, f"{shown(url)} is damaged: {what}", next=next)


def shown(url: sa.URL) -> str:
    """Return a ledger's URL for messages, without password and settings, which may be secret."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return hidden(url.render_as_string(hide_password=False))


def unusable(url: sa.URL, where: str, exc: sa.exc.DBAPIError) -> LedgerError:
    """Translate a database error for the user."""
    if url.get_backend_name() == "sqlite":
        return _unusable_file(url, where, exc)
    reason = reason_of(exc)
    what = f"{shown(url)} cannot be used: {reason}"
    if _state(exc) == _DISK_FULL:
        return LedgerUnavailableError(where, what, next=FREE_DISK_SPACE)
    return LedgerError(where, what, next=_next_at_a_server(url, exc, reason))


def _unusable_file(url: sa.URL, where: str, exc: sa.exc.DBAPIError) -> LedgerError:
    code: int = getattr(exc.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    kind, what = code & 0xFF, f"{shown(url)} cannot be used: {reason_of(exc)}"  # extended codes add higher bits
    if kind == sqlite3.SQLITE_NOTADB:
        what = f"{shown(url)} is not an SQLite database, or its start is damaged"
        next = "Choose another path. A damaged ledger: restore a backup, or use evosearch ledger recover"
        return DamagedLedgerError(where, what, next=next)
    if kind == sqlite3.SQLITE_CORRUPT:
        return damaged(url, where, reason_of(exc))
    if kind in _LOCKED:
        names = lockers(Path(url.database or ""))
        what = f"{shown(url)} is locked by {' and '.join(names) or 'another process'}"
        next = "End that program, then run the same command to resume; everything recorded is safe"
        return LedgerUnavailableError(where, what, next=next)
    if code in _READING:
        return LedgerUnavailableError(where, what, next="Check its disk, which could not be read, and copy the file")
    if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return LedgerUnavailableError(where, what, next=FREE_DISK_SPACE)
    return LedgerError(where, what, next="Check that it exists and is writable")


def _next_at_a_server(url: sa.URL, exc: sa.exc.DBAPIError, reason: str) -> str:
    host, port = url.host or "localhost", url.port or 5432
    at = f"-h {host} -p {port}"
    if re.search("password|authentication", reason) and (kept := withheld(url)):
        return kept
    if "authentication method requirement" in reason:
        return "Let it use scram-sha-256 (pg_hba.conf), or set PGREQUIREAUTH to the method that you accept"
    if "password" in reason:
        line = f"{host}:{port}:{url.database or '*'}:{url.username or 'USER'}:PASSWORD"
        return f"Add the line {line} to ~/.pgpass, or to the file that $PGPASSFILE names, mode 0600"
    if re.search(r'database ".*" does not exist', reason):
        return f"Create it: createdb {at} {url.database}"
    if "resolve" in reason or "translate host name" in reason:
        return "Check the host name"
    if _state(exc) == _NOT_ALLOWED:
        return f"Create a database for this user: createdb {at} -O {url.username or 'USER'} NAME"
    if _state(exc) is None and isinstance(exc, sa.exc.OperationalError):  # the connection failed
        return f"Check that the server is running and accepts connections from this host: psql {at} -l"
    return "Check the URL, and the database"


def reason_of(exc: sa.exc.DBAPIError) -> str:
    """Return the database's message in one line."""
    text = str(exc.orig).strip()
    lines = [line.strip(" \t-") for line in text.splitlines() if line.strip()] or [type(exc.orig).__name__]
    tried = next((i for i, line in enumerate(lines) if line.startswith("Multiple connection attempts")), None)
    line = lines[0] if tried is None or len(lines) < tried + 2 else lines[tried + 1]
    line = line.removeprefix("connection failed: ").removeprefix("connection is bad: ")
    return re.sub(r"\s+", " ", line.replace("FATAL:", "")).removesuffix(".")


def is_transient(exc: sa.exc.DBAPIError) -> bool:
    """Return whether a retry may succeed: the connection was lost or failed, or the server says so."""
    state = _state(exc)
    if state is not None:
        return state.startswith("08") or state in _TRANSIENT
    return exc.connection_invalidated or isinstance(exc, sa.exc.OperationalError)


def is_starting(exc: sa.exc.DBAPIError) -> bool:
    """Return whether a server is about to be ready, by its message, since there is no code before a connection."""
    words = "the database system is|too many clients|remaining connection slots|closed the connection|terminating conn"
    return exc.connection_invalidated or bool(re.search(words, str(exc.orig)))


def _state(exc: sa.exc.DBAPIError) -> str | None:
    return getattr(exc.orig, "sqlstate", None)
