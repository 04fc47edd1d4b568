"""Tables of the ledger, and opening, creation and checks of its database."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from evosearch.errors import LedgerError
from evosearch.redaction import hidden
from evosearch.search.ledger.database_errors import NoLedgerError, damaged, is_starting, shown, unusable
from evosearch.search.ledger.lock import this_host
from evosearch.search.ledger.server_access import refuse_settings

SCHEMA = 2  # version of the tables; ledgers with another one are refused
BUSY_S = 30.0  # wait for the write of another connection
STARTING_S = 30.0  # wait for a server that is starting
# Advisory locks of a PostgreSQL database, held while creating the tables or counting an opening of a test set
CREATING, OPENING = 0x65766F5F6C656467, 0x65766F5F6F70656E

# How soon each end of a connection notices that the other is gone; bounds how long a dead host holds a lock
KEEPALIVE: dict[str, Any] = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
UNANSWERED_MS = 30_000

metadata = sa.MetaData()

meta = sa.Table("ledger_meta", metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text))

events = sa.Table(
    "ledger_events",
    metadata,
    sa.Column("search_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),  # from 1, without gaps
    sa.Column("more", sa.Integer, nullable=False),  # events that follow in the same transaction
    sa.Column("time", sa.Double, nullable=False),  # seconds since the epoch
    sa.Column("clock", sa.Double, nullable=False),  # monotonic seconds of the writing process
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),  # JSON
    sa.Column("checksum", sa.Text, nullable=False),  # see `rows`
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
    sa.Column("checksum", sa.Text, nullable=False),
)

test_openings = sa.Table(
    "ledger_test_openings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("search_id", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("candidates", sa.Text, nullable=False),  # JSON, sorted
    sa.Column("checksum", sa.Text, nullable=False),
)


def parse_url(url: str, where: str) -> sa.URL:
    """Parse the URL of a ledger.

    Raises:
        LedgerError: It is not a URL, not one of a supported database, or has settings that a URL may not have.
    """
    allowed = "sqlite:///PATH or postgresql://HOST/DATABASE"
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise LedgerError(where, f"got '{hidden(url)}'", allowed) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise LedgerError(where, f"got a {parsed.get_backend_name()} database", allowed)
    if parsed.get_backend_name() == "sqlite" and (parsed.database or ":memory:") == ":memory:":
        raise LedgerError(where, "a ledger in memory would be lost with the process", allowed)
    if parsed.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise LedgerError(where, f"got the driver '{parsed.drivername}'", allowed)
    if parsed.get_backend_name() == "postgresql":
        refuse_settings(parsed, where)
    return parsed


def sqlite_path(url: sa.URL) -> Path | None:
    """Return the file of an SQLite ledger, None for PostgreSQL."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def connect(url: sa.URL, where: str, read_only: bool) -> Engine:
    """Return an engine for the ledger, and create the folder of an SQLite file that will be written.

    Raises:
        LedgerError: There is no file to read, it is a device or a pipe, the folder cannot be created, or PostgreSQL's
            driver is missing.
    """
    path = sqlite_path(url)
    if path is None:
        return _connect_postgres(url, where, read_only)
    # SQLite reads devices, and waits for pipes. Unlike Path's, these functions raise nothing for an unreadable folder.
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise LedgerError(where, f"{path} is not a regular file", next="Choose another path")
    if read_only:
        if not os.path.isfile(path):
            raise NoLedgerError(where, f"no ledger at {path}", next="Run a search first, or check the path")
        reader = sa.create_engine("sqlite://", creator=lambda: _open_to_read(path), poolclass=NullPool)
        sa.event.listen(reader, "begin", _begin_sqlite)  # all queries of a transaction see one snapshot
        return reader
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        reason = f"the folder {path.parent} cannot be created: {exc.strerror}"
        raise LedgerError(where, reason, next="Choose a writable folder") from None
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_postgres(url: sa.URL, where: str, read_only: bool) -> Engine:
    wanted = KEEPALIVE | {"connect_timeout": 10, "tcp_user_timeout": UNANSWERED_MS}
    wanted = {key: value for key, value in wanted.items() if key not in url.query}
    try:
        engine = sa.create_engine(url, connect_args=wanted, use_native_hstore=False)
    except ModuleNotFoundError as exc:
        what = f"the PostgreSQL driver '{exc.name}' is not installed"
        raise LedgerError(where, what, next='Install it: pip install "psycopg[binary]"') from None
    settings = {f"tcp_{key}": str(value) for key, value in KEEPALIVE.items()} | {
        "application_name": f"evosearch {os.getpid()} on {this_host()}",
        "tcp_user_timeout": str(UNANSWERED_MS),
        "idle_in_transaction_session_timeout": "60s",  # ends transactions of a suspended process
        "lock_timeout": "20s",
        "default_transaction_read_only": "on" if read_only else "off",
    }

    def configure(connection: Any, _: Any) -> None:
        query = ", ".join(["set_config(%s, %s, false)"] * len(settings))
        try:
            connection.autocommit = True
            connection.execute(f"SELECT {query}", [text for pair in settings.items() for text in pair])
            connection.autocommit = False
        except BaseException:
            connection.close()  # SQLAlchemy does not own it yet
            raise

    sa.event.listen(engine, "connect", configure)
    return engine


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Open a file for reading without creating side files.

    With `mode=ro` SQLite creates the side files of the write-ahead log if they are missing, and leaves them behind.
    They are missing only while no writer has the ledger open; then `immutable` reads the file as it is. Connections are
    not kept, so the next read sees a later writer.
    """
    writer = os.path.exists(f"{path}-wal")
    uri = path.resolve().as_uri() + ("?mode=ro" if writer else "?mode=ro&immutable=1")
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, check_same_thread=False)
    connection.text_factory, connection.isolation_level = _text, None
    return connection


def _text(data: bytes) -> str:
    """Decode text, also where a damaged row is not UTF-8: its checksum shows which row it is."""
    return data.decode("utf-8", errors="replace")


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.text_factory = _text
    connection.isolation_level = None  # `_begin_sqlite` begins transactions: the driver would begin them late
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers never wait for the writer
    cursor.execute("PRAGMA synchronous=FULL")  # commits survive a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """Begin a transaction; a writing one takes the write lock at once, because upgrading later can deadlock."""
    writes = connection.get_execution_options().get("evosearch_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def check_server(url: str, where: str) -> None:
    """Check that a ledger on a server can be opened for writing and its tables created; changes are rolled back.

    Raises:
        LedgerError: See `prepare`.
    """
    parsed = parse_url(url, where)
    assert sqlite_path(parsed) is None
    engine = connect(parsed, where, read_only=False)
    try:
        prepare(engine, parsed, where, read_only=False, keep=False)
    finally:
        engine.dispose()


def prepare(engine: Engine, url: sa.URL, where: str, read_only: bool, keep: bool = True) -> None:
    """Create missing tables and check their version; waits for a server that is starting.

    Args:
        engine: Engine of `connect`.
        url: URL of the ledger.
        where: Name of the ledger in errors.
        read_only: Create nothing.
        keep: Keep created tables; False rolls them back.

    Raises:
        LedgerError: It is not a database, has other tables or those of another version, or is not writable.
    """
    deadline = time.monotonic() + STARTING_S
    while True:
        try:
            version = _prepare(engine, url, where, read_only, keep)
            break
        except sa.exc.DBAPIError as exc:
            if not is_starting(exc) or time.monotonic() > deadline:
                raise unusable(url, where, exc) from None
            time.sleep(0.5)
    if version is None or not version.isdigit():
        raise damaged(url, where, "its schema version is missing")
    if int(version) != SCHEMA:
        newer = int(version) > SCHEMA
        what = f"{shown(url)} was written by {'a newer' if newer else 'an older'} evosearch (schema {version})"
        next = "Update evosearch" if newer else "Read it with that version, or choose another ledger"
        raise LedgerError(where, what, f"This one reads schema {SCHEMA}", next)


def _prepare(engine: Engine, url: sa.URL, where: str, read_only: bool, keep: bool) -> str | None:
    """Return the version of the tables, created if necessary."""
    options = {"evosearch_write": not read_only}
    with engine.connect().execution_options(**options) as connection, connection.begin() as transaction:
        present = _tables(connection)
        if meta.name not in present and sqlite_path(url) is None and not read_only:
            connection.execute(
                sa.select(sa.func.pg_advisory_xact_lock(CREATING))
            )  # two processes may find an empty database
            present = _tables(connection)
        if meta.name not in present:
            _create(connection, present, url, where, read_only)
        version: str | None = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "schema"))
        if not keep:
            transaction.rollback()
        return version


def _tables(connection: sa.Connection) -> set[str]:
    """Return the names of all tables; on a server also those of other schemas, as `schema.table`."""
    if connection.dialect.name == "sqlite":
        return set(sa.inspect(connection).get_table_names())
    query = (
        "SELECT CASE WHEN schemaname = current_schema() THEN tablename ELSE schemaname || '.' || tablename END"
        " FROM pg_catalog.pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    return set(connection.scalars(sa.text(query)))


def _create(connection: sa.Connection, present: set[str], url: sa.URL, where: str, read_only: bool) -> None:
    server = sqlite_path(url) is None
    if present:
        what = f"{shown(url)} has no ledger, only other tables: {', '.join(sorted(present)[:3])}"
        next = "Create a database for it: createdb evosearch" if server else "Choose another path"
        raise LedgerError(where, what, next=next)
    if read_only:
        next = "Run a search first, or check the URL" if server else "Choose another path"
        raise NoLedgerError(where, f"{shown(url)} has no ledger", next=next)
    if server and (encoding := connection.scalar(sa.text("SHOW server_encoding"))) != "UTF8":
        next = f"Create another: createdb -E UTF8 -T template0 {url.database}"
        raise LedgerError(where, f"{shown(url)} has the encoding {encoding}", "UTF8", next)
    create_tables(connection)


def create_tables(connection: sa.Connection) -> None:
    """Create the tables in an empty database, with their version."""
    metadata.create_all(connection, checkfirst=False)
    connection.execute(sa.insert(meta), [{"key": "schema", "value": str(SCHEMA)}])
