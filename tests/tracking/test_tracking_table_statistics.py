"""SQLite's statistics of MLflow's tables: sorting many runs by a metric is no nested loop."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks._light_workers.driver import SEARCH
from benchmarks._light_workers.night import Night
from evosearch.tracking import table_statistics
from evosearch.tracking.client import connect, default_uri

NESTED = "SCAN anon_1 LEFT-JOIN"  # the metrics are read once for each run


def sorted_by_score(uri: str) -> tuple[str, Sequence[Any]]:
    """MLflow's statement for the runs of a search by score, with its parameters."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(SEARCH).experiment_id
    found: list[tuple[str, Sequence[Any]]] = []

    def keep(_: Any, __: Any, statement: str, parameters: Sequence[Any], *more: Any) -> None:
        found.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", keep)
    try:
        client.search_runs([experiment], f"tags.search_id = '{SEARCH}'", order_by=["metrics.`score/search` DESC"])
    finally:
        event.remove(Engine, "before_cursor_execute", keep)
    (one,) = [pair for pair in found if "latest_metrics" in pair[0] and "LIMIT" in pair[0]]
    return one


def plan(database: sqlite3.Connection, statement: tuple[str, Sequence[Any]]) -> str:
    """How SQLite would execute a statement."""
    return "\n".join(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement[0]}", statement[1]))


def test_the_mirror_collects_them_and_an_open_connection_uses_them(tmp_path: Path) -> None:
    file, uri = tmp_path / "mlflow.db", default_uri(tmp_path)
    Night(300, 0.0, "sqlite", tmp_path).run()
    statement = sorted_by_score(uri)
    with closing(sqlite3.connect(file)) as database:
        assert NESTED not in plan(database, statement)
        database.execute("DROP TABLE sqlite_stat1")
        database.commit()
    with closing(sqlite3.connect(file)) as reader:
        assert NESTED in plan(reader, statement), "what SQLite does without"
        table_statistics.refresh(uri)
        reader.execute("SELECT COUNT(*) FROM runs").fetchone()  # EXPLAIN alone does not see that the schema has changed
        assert NESTED not in plan(reader, (f"{statement[0]} ", statement[1])), "such as one of `evosearch ui`"


def test_few_runs_other_files_and_locked_ones_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table_statistics.refresh(default_uri(tmp_path))
    assert not (tmp_path / "mlflow.db").exists()
    table_statistics.refresh("http://127.0.0.1:1")
    (tmp_path / "mlflow.db").write_text("no database")
    table_statistics.refresh(default_uri(tmp_path))
    assert (tmp_path / "mlflow.db").read_text() == "no database"
    other = tmp_path / "other"
    other.mkdir()
    connect(default_uri(other))
    table_statistics.refresh(default_uri(other))
    with closing(sqlite3.connect(other / "mlflow.db")) as database:
        assert not database.execute("SELECT * FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchall()
        monkeypatch.setattr(table_statistics, "PATIENCE_S", 0.1)
        monkeypatch.setattr(table_statistics, "LEAST", 0)
        database.execute("BEGIN EXCLUSIVE")
        table_statistics.refresh(default_uri(other))
        database.rollback()
        assert not database.execute("SELECT * FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchall()
