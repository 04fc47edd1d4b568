"""The ledger's tables, and how its database is opened, created and refused."""

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from evosearch.errors import LedgerError

SCHEMA = 1  # of the tables; a ledger with a greater one was written by a newer version
BUSY_S = 30.0  # how long a connection waits for another's write to end

metadata = sa.MetaData()

meta = sa.Table("ledger_meta", metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text))

events = sa.Table(
    "ledger_events",
    metadata,
    sa.Column("search_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),  # from 1, without gaps
    sa.Column("time", sa.Double, nullable=False),  # seconds since the epoch
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),  # of the payload's form
    sa.Column("payload", sa.Text, nullable=False),  # JSON
)

item_sets = sa.Table(
    "ledger_item_sets",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("lm_eval_task", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),  # zlib of JSON {doc_ids, doc_hashes, groups, documents}
)

scores = sa.Table(
    "ledger_scores",
    metadata,
    sa.Column("search_id", sa.Text, primary_key=True),
    sa.Column("candidate", sa.Text, primary_key=True),
    sa.Column("split", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, sa.ForeignKey(item_sets.c.digest), primary_key=True),
    sa.Column("column", sa.Text, primary_key=True),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),  # zlib of n little-endian float64
)

test_openings = sa.Table(
    "ledger_test_openings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("search_id", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("candidates", sa.Text, nullable=False),  # JSON, sorted
)


def parse_url(url: str, where: str) -> sa.URL:
    """
    Raises:
        LedgerError: it is no URL, or of a database we do not write to.
    """
    allowed = "sqlite:///PATH or postgresql://HOST/DATABASE"
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise LedgerError(where, f"got '{url}'", allowed) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise LedgerError(where, f"got a {parsed.get_backend_name()} database", allowed)
    if parsed.get_backend_name() == "sqlite" and (parsed.database or ":memory:") == ":memory:":
        raise LedgerError(where, "a ledger in memory would be lost with the process", allowed)
    return parsed


def sqlite_path(url: sa.URL) -> Path | None:
    """The file of an SQLite ledger, None for PostgreSQL."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def connect(url: sa.URL, where: str, read_only: bool) -> Engine:
    """An engine for the ledger; an SQLite file's folder is created, unless it is only to be read.

    Raises:
        LedgerError: no file to read, a folder that cannot be made, or no driver for PostgreSQL.
    """
    path = sqlite_path(url)
    if path is None:
        return _connect_postgres(url, where)
    if read_only:
        if not path.is_file():
            raise LedgerError(where, f"no ledger at {path}", next="Run a search first, or check the path")
        return sa.create_engine("sqlite://", creator=lambda: _open_to_read(path), poolclass=NullPool)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        reason = f"the folder {path.parent} cannot be made: {exc.strerror}"
        raise LedgerError(where, reason, next="Choose a folder you may write to") from None
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_postgres(url: sa.URL, where: str) -> Engine:
    try:
        return sa.create_engine(url, pool_pre_ping=True)
    except ModuleNotFoundError as exc:
        what = f"the PostgreSQL driver '{exc.name}' is not installed"
        raise LedgerError(where, what, next='Install it: pip install "psycopg[binary]"') from None


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Read without leaving a trace.

    Opened `mode=ro`, SQLite makes the log's side files where there are none, and leaves them. There are none only when
    no writer has the ledger open; then `immutable` reads the file as it lies. Connections are not kept, so a writer
    that comes later is seen by the next read.
    """
    writer = Path(f"{path}-wal").exists()
    uri = path.resolve().as_uri() + ("?mode=ro" if writer else "?mode=ro&immutable=1")
    return sqlite3.connect(uri, uri=True, timeout=BUSY_S, check_same_thread=False)


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves: the driver would begin them late
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers never wait for the writer
    cursor.execute("PRAGMA synchronous=FULL")  # what is committed outlives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """A transaction that will write takes the write lock at once: reading first and then upgrading can deadlock."""
    writes = connection.get_execution_options().get("evosearch_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def prepare(engine: Engine, url: sa.URL, where: str, read_only: bool) -> None:
    """Create the tables where there are none, and check whose they are.

    Raises:
        LedgerError: not a database, somebody else's, of a newer version, or not writable.
    """
    try:
        with engine.connect().execution_options(evosearch_write=not read_only) as connection, connection.begin():
            present = set(sa.inspect(connection).get_table_names())
            if meta.name not in present:
                _create(connection, present, url, where, read_only)
            version = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "schema"))
    except sa.exc.DBAPIError as exc:
        raise unusable(url, where, exc) from None
    if version is None or not version.isdigit():
        raise LedgerError(where, f"{_shown(url)} is damaged: its schema version is missing")
    if int(version) > SCHEMA:
        what = f"{_shown(url)} was written by a newer evosearch (schema {version})"
        raise LedgerError(where, what, f"This one reads schema {SCHEMA}", "Update evosearch")


def _create(connection: sa.Connection, present: set[str], url: sa.URL, where: str, read_only: bool) -> None:
    alone = sqlite_path(url) is not None  # a PostgreSQL database may hold other programs' tables too
    if read_only or (present and alone):
        what = f"{_shown(url)} holds no ledger"
        if present:
            what += f" but other tables: {', '.join(sorted(present)[:3])}"
        raise LedgerError(where, what, next="Choose another path")
    metadata.create_all(connection)
    connection.execute(sa.insert(meta), [{"key": "schema", "value": str(SCHEMA)}])


def unusable(url: sa.URL, where: str, exc: sa.exc.DBAPIError) -> LedgerError:
    """What a database error means to the user."""
    reason = str(exc.orig).strip().splitlines()[0] if str(exc.orig).strip() else type(exc.orig).__name__
    if "not a database" in reason:
        return LedgerError(where, f"{_shown(url)} is not an SQLite database", next="Choose another path")
    next = "Check that it exists and may be written"
    if "disk" in reason:  # "database or disk is full", "disk I/O error"
        next = "Make room on its disk, then run the same command: what was recorded is safe"
    return LedgerError(where, f"{_shown(url)} cannot be used: {reason}", next=next)


def _shown(url: sa.URL) -> str:
    path = sqlite_path(url)
    return str(path) if path is not None else url.render_as_string(hide_password=True)
