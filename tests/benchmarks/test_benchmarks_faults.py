"""`scripts/bench/faults`: its checks find what is wrong with a ledger; one scenario is played as anybody runs it."""

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
from evosearch.search.protocols import Failure, Job, Outcome

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "faults"
CANDIDATES = 12
Break = Callable[[sqlite3.Connection], Any]


class Here:
    """An executor of one light worker in this process; the third candidate is scored at a second attempt."""

    slots = 1

    def __init__(self, folder: Path, world: Any) -> None:
        self._worker, self._queue = Light(folder, world).worker(), deque[Job]()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        if not self._queue:
            return []
        job = self._queue.popleft()
        met = (Failure("worker", "the worker died: told to", fault="worker"),) if job.id == "2@search" else ()
        return [Outcome(job, self._worker.name, card=self._worker.run(job).card, retries=met)]

    def close(self) -> None:
        self._queue.clear()


@pytest.fixture
def whole(tmp_path: Path, no_power_cuts: None) -> Path:
    """The ledger of a search in which all went well but for one attempt."""
    path = tmp_path / "ledger.db"
    settings = Settings(f"sqlite:///{path}", None, "", str(tmp_path), CANDIDATES, 0.0)
    with Ledger.open(settings.ledger) as ledger, ledger.acquire(SEARCH):
        ledger.put_item_sets(settings.world.batch)
        assert _search(settings, ledger, Here(tmp_path, settings.world), []) == "candidates"
    return path


def seq(connection: sqlite3.Connection, kind: str, text: str = "") -> int:
    """The number of the last event of a type whose payload has some text."""
    query = "SELECT max(seq) FROM ledger_events WHERE type = ? AND payload LIKE ?"
    (found,) = connection.execute(query, (kind, f"%{text}%")).fetchone()
    return int(found)


def drop(kind: str, text: str) -> Break:
    """Take an event out, and close the gap that it leaves."""

    def change(connection: sqlite3.Connection) -> None:
        at = seq(connection, kind, text)
        connection.execute("DELETE FROM ledger_events WHERE seq = ?", (at,))
        connection.execute("UPDATE ledger_events SET seq = -seq WHERE seq > ?", (at,))
        connection.execute("UPDATE ledger_events SET seq = -seq - 1 WHERE seq < 0")

    return change


def double(kind: str, text: str) -> Break:
    """Record an event again, before the last."""

    def change(connection: sqlite3.Connection) -> None:
        at, last = seq(connection, kind, text), seq(connection, "stopped")
        connection.execute("UPDATE ledger_events SET seq = seq + 1 WHERE seq = ?", (last,))
        connection.execute(
            "INSERT INTO ledger_events SELECT search_id, ?, time, type, version, payload FROM ledger_events"
            " WHERE seq = ?",
            (last, at),
        )

    return change


def sql(text: str) -> Break:
    return lambda connection: connection.execute(text)


def test_a_ledger_that_is_whole_passes(whole: Path) -> None:
    url = f"sqlite:///{whole}"
    record = examine(url, SEARCH, CANDIDATES)
    assert (record.candidates, record.lost, record.doubled, record.broken) == (CANDIDATES, (), (), ())
    assert record.retried == (("2", "the worker died: told to"),)
    assert conclude("…", record, "the worker died: ").problems == ()
    assert events_of(url, "another") == []
    assert events_of(f"sqlite:///{whole}.not-there", SEARCH) == []


@pytest.mark.parametrize(
    ("change", "lost", "doubled", "broken"),
    [
        (drop("scored", '"candidate":"7"'), "7", "", "there are scores of 7@search, and no result"),
        (drop("told", '"candidate":"5"'), "5", "", ""),
        (drop("asked", '"candidate":"11"'), "", "", "11 candidates were asked, not 12"),
        (sql("DELETE FROM ledger_scores WHERE candidate = '4'"), "4", "", ""),
        (double("scored", '"candidate":"7"'), "", "('7', 'search', None) recorded twice", ""),
        (double("told", '"candidate":"5"'), "", "5 told twice", ""),
        (double("asked", '"candidate":"3"'), "", "3 asked twice", ""),
        (
            sql("DELETE FROM ledger_events WHERE type = 'retried'"),
            "",
            "",
            "events are not numbered one after the other",
        ),
        (sql("DELETE FROM ledger_events WHERE type = 'stopped'"), "", "", "it has not stopped"),
    ],
)
def test_a_ledger_that_is_not_whole_is_told_from_one_that_is(
    whole: Path, change: Break, lost: str, doubled: str, broken: str
) -> None:
    url = f"sqlite:///{whole}"
    with sqlite3.connect(whole) as connection:
        change(connection)
    connection.close()
    record = examine(url, SEARCH, CANDIDATES)
    assert record.lost == ((lost,) if lost else ())
    assert record.doubled == ((doubled,) if doubled else ())
    assert any(broken in text for text in record.broken) if broken else record.broken[1:] == ()
    assert conclude("…", record, "the worker died: ").problems


def test_a_record_may_grow_and_nothing_else(whole: Path) -> None:
    events = events_of(f"sqlite:///{whole}", SEARCH)
    assert altered(events[:-5], events) == []
    assert altered(events, events[:-1]) == [f"event {len(events)} (stopped) is not what it was"]
    with sqlite3.connect(whole) as connection:
        connection.execute("UPDATE ledger_events SET payload = replace(payload, '0.', '1.') WHERE seq = 2")
    connection.close()
    assert altered(events, events_of(f"sqlite:///{whole}", SEARCH)) == ["event 2 (asked) is not what it was"]


def test_reasons_must_be_there_and_be_the_ones_expected(whole: Path) -> None:
    record = examine(f"sqlite:///{whole}", SEARCH, CANDIDATES)
    assert conclude("…", record).problems == ("candidate 2 was scored again: the worker died: told to",)
    assert conclude("…", record, "its node was lost: ").problems == (
        "candidate 2 was scored again: the worker died: told to",
    )
    with sqlite3.connect(whole) as connection:
        drop("retried", "")(connection)
    connection.close()
    silent = examine(f"sqlite:///{whole}", SEARCH, CANDIDATES)
    assert conclude("…", silent, "the worker died: ").problems == ("on record is that 0 were scored again, not 1",)
    assert conclude("…", silent, None, {"3": "quarantined: "}).problems == ("candidate 3 has not failed",)


@pytest.mark.ray
@pytest.mark.slow
def test_a_scenario_is_played_to_its_end_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [
        sys.executable,
        str(SCRIPT),
        "--only",
        "poison",
        "--folder",
        str(tmp_path / "kept"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["scenarios"].values()
    assert (row["passed"], row["lost"], row["doubled"], row["candidates"]) == (True, 0, 0, 50)
    assert any(reason.startswith("quarantined: 2 workers were lost under it") for reason in row["reasons"])
    assert "| poison | candidate 20 kills its worker, each time | 0 | 0 | the worker died: " in done.stderr
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == ""
