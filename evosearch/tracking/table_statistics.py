"""Statistics of the tables in MLflow's SQLite file, by which SQLite chooses how to join them.

Without any, runs sorted by a metric are a nested loop, whose time grows with the square of the runs. Neither SQLite nor
MLflow collects them; databases with a server do so by themselves.
"""

import sqlite3
from contextlib import closing

from evosearch.tracking.client import sqlite_file

LEAST = 256  # runs; with statistics of much fewer, SQLite would still choose the nested loop
ROWS = 1000  # of an index that are read: some milliseconds
PATIENCE_S = 5.0  # for another process that writes


def refresh(uri: str) -> None:
    """Collect the statistics of a store, if it is a SQLite file with enough runs.

    A connection reads them when it is opened, and when the first ones are collected. They are no part of what the store
    holds: one that is locked or cannot be written keeps those it has.
    """
    file = sqlite_file(uri)
    if file is None or not file.is_file():
        return
    try:
        with closing(sqlite3.connect(file, timeout=PATIENCE_S)) as database:
            (runs,) = database.execute("SELECT COUNT(*) FROM runs").fetchone()
            if runs >= LEAST:
                database.execute(f"PRAGMA analysis_limit={ROWS}")
                database.execute("ANALYZE")
                database.commit()
    except sqlite3.Error:
        return
