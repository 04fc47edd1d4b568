"""`benchmarks.faults`: its checks detect inconsistent ledgers, and one scenario runs as documented."""

import json
import os
import sqlite3
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks._accidents.record import altered, events_of, examine
from benchmarks._accidents.stage import conclude
from benchmarks._light_workers.driver import SEARCH, Settings, _search
from benchmarks._light_workers.light import Light
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.rows import checksum
from evosearch.search.protocols import Failure, Job, Outcome

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = 12
Break = Callable[[sqlite3.Connection], Any]


class Here:
    """Executor of one light worker in this process; the third candidate succeeds on its second attempt."""

    slots = 1

    def __init__(self, folder: Path, world: Any) -> None:
        self._worker, self._queue = Light(folder, world).worker(), deque[Job]()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        if not self._queue:
            return []
        job = self._queue.popleft()
        earlier = (Failure("worker", "the worker died: on request", fault="worker"),) if job.id == "2@search" else ()
        return [Outcome(job, self._worker.name, card=self._worker.run(job).card, retries=earlier)]

    def close(self) -> None:
        self._queue.clear()


@pytest.fixture
def ledger(tmp_path: Path, no_power_cuts: None) -> Path:
    """Ledger of a search in which only one attempt failed."""
    path = tmp_path / "ledger.db"
    settings = Settings(f"sqlite:///{path}", None, "", str(tmp_path), CANDIDATES, 0.0)
    with Ledger.open(settings.ledger) as ledger, ledger.acquire(SEARCH):
        ledger.put_item_sets(settings.world.batch)
        assert _search(settings, ledger, Here(tmp_path, settings.world), []) == "candidates"
    return path


def seq(connection: sqlite3.Connection, kind: str, text: str = "") -> int:
    """Number of the last event of a type whose payload contains a text."""
    query = "SELECT max(seq) FROM ledger_events WHERE type = ? AND payload LIKE ?"
    (found,) = connection.execute(query, (kind, f"%{text}%")).fetchone()
    return int(found)


def drop(kind: str, text: str) -> Break:
    """Delete an event and close the gap in the numbers."""

    def change(connection: sqlite3.Connection) -> None:
        at = seq(connection, kind, text)
        connection.execute("DELETE FROM ledger_events WHERE seq = ?", (at,))
        connection.execute("UPDATE ledger_events SET seq = -seq WHERE seq > ?", (at,))
        connection.execute("UPDATE ledger_events SET seq = -seq - 1 WHERE seq < 0")

    return change


def double(kind: str, text: str) -> Break:
    """Record an event again, before the last one."""

    def change(connection: sqlite3.Connection) -> None:
        at, last = seq(connection, kind, text), seq(connection, "stopped")
        connection.execute("UPDATE ledger_events SET seq = seq + 1 WHERE seq = ?", (last,))
        connection.execute(
            "INSERT INTO ledger_events SELECT search_id, ?, more, time, clock, type, payload, checksum"
            " FROM ledger_events WHERE seq = ?",
            (last, at),
        )

    return change


def with_checksums(connection: sqlite3.Connection) -> None:
    """Make the rows valid again, as if a faulty program had written them."""
    connection.row_factory = sqlite3.Row
    for row in map(dict, connection.execute("SELECT * FROM ledger_events").fetchall()):
        key = (row["search_id"], row["seq"])
        connection.execute(
            "UPDATE ledger_events SET checksum = ? WHERE search_id = ? AND seq = ?", (checksum(row), *key)
        )


def sql(text: str) -> Break:
    return lambda connection: connection.execute(text)


def test_a_consistent_ledger_passes(ledger: Path) -> None:
    url = f"sqlite:///{ledger}"
    record = examine(url, SEARCH, CANDIDATES)
    assert (record.candidates, record.lost, record.duplicated, record.broken) == (CANDIDATES, (), (), ())
    assert record.retried == (("2", "the worker died: on request"),)
    assert conclude("…", record, "the worker died: ").problems == ()
    assert events_of(url, "another") == []
    assert events_of(f"sqlite:///{ledger}.missing", SEARCH) == []


@pytest.mark.parametrize(
    ("change", "lost", "duplicated", "broken"),
    [
        (drop("scored", '"candidate":"7"'), "7", "", "7@search: per-item scores without a result"),
        (drop("told", '"candidate":"5"'), "5", "", ""),
        (drop("asked", '"candidate":"11"'), "", "", "11 candidates were proposed, not 12"),
        (sql("DELETE FROM ledger_scores WHERE candidate = '4'"), "4", "", ""),
        (double("scored", '"candidate":"7"'), "", "('7', 'search', None) recorded twice", ""),
        (double("told", '"candidate":"5"'), "", "5 reported twice", ""),
        (double("asked", '"candidate":"3"'), "", "3 proposed twice", ""),
        (
            sql("DELETE FROM ledger_events WHERE type = 'retried'"),
            "",
            "",
            "event numbers have a gap at ",
        ),
        (sql("DELETE FROM ledger_events WHERE type = 'stopped'"), "", "", "the last event is not 'stopped'"),
    ],
)
def test_an_inconsistent_ledger_fails(ledger: Path, change: Break, lost: str, duplicated: str, broken: str) -> None:
    url = f"sqlite:///{ledger}"
    with sqlite3.connect(ledger) as connection:
        change(connection)
        with_checksums(connection)
    connection.close()
    record = examine(url, SEARCH, CANDIDATES)
    assert record.lost == ((lost,) if lost else ())
    assert record.duplicated == ((duplicated,) if duplicated else ())
    assert any(broken in text for text in record.broken) if broken else record.broken[1:] == ()
    assert conclude("…", record, "the worker died: ").problems


def test_a_ledger_may_only_grow(ledger: Path) -> None:
    events = events_of(f"sqlite:///{ledger}", SEARCH)
    assert altered(events[:-5], events) == []
    assert altered(events, events[:-1]) == [f"event {len(events)} (stopped) has changed"]
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE ledger_events SET payload = replace(payload, '0.', '1.') WHERE seq = 2")
        with_checksums(connection)
    connection.close()
    assert altered(events, events_of(f"sqlite:///{ledger}", SEARCH)) == ["event 2 (asked) has changed"]


def test_reasons_must_be_recorded_and_match(ledger: Path) -> None:
    record = examine(f"sqlite:///{ledger}", SEARCH, CANDIDATES)
    assert conclude("…", record).problems == ("candidate 2 was retried: the worker died: on request",)
    assert conclude("…", record, "its node was lost: ").problems == (
        "candidate 2 was retried: the worker died: on request",
    )
    with sqlite3.connect(ledger) as connection:
        drop("retried", "")(connection)
        with_checksums(connection)
    connection.close()
    silent = examine(f"sqlite:///{ledger}", SEARCH, CANDIDATES)
    assert conclude("…", silent, "the worker died: ").problems == ("0 retries are recorded, expected at least 1",)
    assert conclude("…", silent, None, {"3": "quarantined: "}).problems == ("candidate 3 did not fail",)


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.slow
def test_a_scenario_runs_as_documented_and_leaves_no_process(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "benchmarks.faults", "--only", "poison", "--folder", str(tmp_path / "kept")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["scenarios"].values()
    assert (row["passed"], row["lost"], row["duplicated"], row["candidates"]) == (True, 0, 0, 50)
    assert any(reason.startswith("quarantined: 2 workers were lost while scoring it") for reason in row["reasons"])
    assert "| poison | candidate 20 kills its worker every time | 0 | 0 | the worker died: " in done.stderr
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == ""
