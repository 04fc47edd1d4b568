"""Copies of a ledger as an SQLite file: consistent, also while a search writes to it."""

import sqlite3
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from evosearch.search.ledger import store

ROWS = 256  # rows in memory at a time


def copy_file(connection: Connection, out: Path) -> None:
    """Copy an SQLite ledger page by page, as SQLite's backup does: one snapshot, which no writer waits for."""
    source = connection.connection.dbapi_connection
    assert isinstance(source, sqlite3.Connection)
    target = sqlite3.connect(out)
    try:
        source.backup(target)  # all pages in one step
    finally:
        target.close()


def copy_rows(connection: Connection, out: Path) -> None:
    """Copy a ledger of another database row by row.

    Args:
        connection: A connection whose queries see one snapshot.
        out: A new file.
    """
    engine = sa.create_engine(f"sqlite:///{out}")
    try:
        with engine.begin() as target:
            store.create_tables(target)
            for table in (store.item_sets, store.events, store.scores, store.test_openings):
                with connection.execution_options(yield_per=ROWS).execute(sa.select(table)) as result:
                    for page in result.partitions():
                        target.execute(sa.insert(table), [dict(row._mapping) for row in page])
    finally:
        engine.dispose()
