"""Translation of database errors: messages for the user, and which errors are transient."""

import re

import sqlalchemy as sa

from evosearch.errors import LedgerError
from evosearch.redaction import hidden

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


class NoLedgerError(LedgerError):
    """There is no ledger to read yet."""


def shown(url: sa.URL) -> str:
    """Return a ledger's URL for messages, without password and settings, which may be secret."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return hidden(url.render_as_string(hide_password=False))


def unusable(url: sa.URL, where: str, exc: sa.exc.DBAPIError) -> LedgerError:
    """Translate a database error for the user."""
    reason = reason_of(exc)
    if "not a database" in reason:
        return LedgerError(where, f"{shown(url)} is not an SQLite database", next="Choose another path")
    next = "Check that it exists and is writable"
    if "disk" in reason or _state(exc) == _DISK_FULL:  # "database or disk is full", "disk I/O error"
        next = "Free disk space, then run the same command to resume; everything recorded is safe"
    elif url.get_backend_name() == "postgresql":
        next = _next_at_a_server(url, exc, reason)
    return LedgerError(where, f"{shown(url)} cannot be used: {reason}", next=next)


def _next_at_a_server(url: sa.URL, exc: sa.exc.DBAPIError, reason: str) -> str:
    host, port = url.host or "localhost", url.port or 5432
    at = f"-h {host} -p {port}"
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
