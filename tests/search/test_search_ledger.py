"""The ledger, in a file and on a server: atomic appends, unique records, one writer, reads without traces."""

import contextlib
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from evosearch.errors import LedgerError
from evosearch.evaluation.types import Estimate, ItemBatch, ItemSet, ScoreCard
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.store import SCHEMA
from evosearch.search.ledger.transactions import RecordedTwiceError

SETS = (
    ItemSet("sums", "evo_sums", (0, 3, 9), ("a", "b", "c"), ("x", "x", "y")),
    ItemSet("moods", "evo_moods", (1,), ("d",)),
)
BATCH = ItemBatch("search", SETS)
COLUMNS = {
    "sums": {"acc": np.array([0.0, 1.0, 1.0]), "gold": np.array([-0.1, -1e-300, -np.inf])},
    "moods": {"acc": np.ones(1)},
}


def card(split: str = "search") -> ScoreCard:
    digests = {items.task: items.digest for items in SETS}
    return ScoreCard(split, BATCH.digest, COLUMNS, digests, {}, 50.0, Estimate(0.5, 0.1, 4))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "night" / "ledger.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, path: Path) -> str:
    """URL of a ledger that does not exist yet."""
    return f"sqlite:///{path}" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger.open(url) as opened:
        yield opened


def alter(url: str, statement: str) -> None:
    """Change a ledger's tables directly."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_events_are_numbered_per_search_and_read_back(ledger: Ledger) -> None:
    first = ledger.append("one", [("started", {"name": "night"}), ("asked", {"genome": {"λ": 0.1, "n": 3, "b": True}})])
    ledger.append("two", [("started", {"name": "other"})])
    second = ledger.append("one", [("stopped", {"reason": "candidates"})])
    assert [event.seq for event in first + second] == [1, 2, 3]
    assert ledger.events("one") == first + second
    assert ledger.events("one", after=2) == second
    assert ledger.events("one", types=["asked"]) == first[1:]
    assert ledger.events("none") == []
    assert first[1].payload["genome"] == {"λ": 0.1, "n": 3, "b": True}
    assert first[0].clock == first[1].clock <= second[0].clock <= time.monotonic()


def test_numbers_survive_to_the_last_bit(ledger: Ledger) -> None:
    values = np.random.default_rng(0).standard_normal(200).tolist()
    ledger.append("one", [("asked", {"genome": values})])
    assert ledger.events("one")[0].payload["genome"] == values


def test_a_payload_that_is_not_finite_is_refused_entirely(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="JSON"):
        ledger.append("one", [("asked", {}), ("told", {"value": float("nan")})])
    assert ledger.events("one") == []


def test_searches_by_name_and_state(ledger: Ledger) -> None:
    ledger.append("one", [("started", {"name": "night"})])
    ledger.append("one", [("stopped", {"reason": "candidates"})])
    ledger.append("two", [("started", {"name": "night"})])
    ledger.append("two", [("asked", {})])
    ledger.append("one", [("started", {"name": "night"}), ("stopped", {"reason": "hours"})])
    found = {info.search_id: info for info in ledger.searches()}
    assert [info.search_id for info in ledger.searches()] == ["two", "one"]
    assert (found["one"].stopped, found["two"].stopped) == ("hours", None)
    assert (found["one"].events, found["two"].events) == (4, 2)
    assert found["one"].started < found["one"].last_event
    latest = ledger.search_by_name("night")
    assert latest is not None
    assert latest.search_id == "two"
    assert ledger.search_by_name("day") is None


def test_scores_come_back_bit_for_bit(ledger: Ledger) -> None:
    ledger.put_item_sets(BATCH)
    ledger.put_item_sets(BATCH)
    ledger.append("one", [("scored", card().summary())], scores=[("0", card())])
    found = ledger.columns("one", "0", "search")
    assert {task: list(columns) for task, columns in found.items()} == {"moods": ["acc"], "sums": ["acc", "gold"]}
    for task, columns in COLUMNS.items():
        for name, values in columns.items():
            assert found[task][name].dtype == np.float64
            assert np.array_equal(found[task][name], values)
    assert ledger.columns("one", "0", "search", {"sums": SETS[0].digest}).keys() == {"sums"}
    assert ledger.columns("one", "1", "search") == {}
    assert ledger.item_set(SETS[0].digest) == SETS[0]
    with pytest.raises(LedgerError, match="item set feed is not recorded"):
        ledger.item_set("feed")


def test_the_database_refuses_a_second_score(ledger: Ledger) -> None:
    ledger.put_item_sets(BATCH)
    ledger.append("one", [("scored", {})], scores=[("0", card())])
    with pytest.raises(RecordedTwiceError):
        ledger.append("one", [("scored", {"again": True})], scores=[("1", card()), ("0", card())])
    assert len(ledger.events("one")) == 1, "neither event nor the other candidate's scores are left behind"
    assert ledger.columns("one", "1", "search") == {}
    ledger.append("one", [("scored", {})], scores=[("0", card("validation"))])
    ledger.append("two", [("scored", {})], scores=[("0", card())])


def test_scores_without_their_item_sets_are_refused(ledger: Ledger) -> None:
    with pytest.raises(RecordedTwiceError, match="item set"):
        ledger.append("one", [("scored", {})], scores=[("0", card())])
    assert ledger.events("one") == []


def test_test_openings_are_counted_over_searches(ledger: Ledger) -> None:
    assert ledger.record_test_opening("one", "digest", ["base", "7"]) == 1
    assert ledger.record_test_opening("one", "digest", ["7", "base"]) == 1, "the same again, after a crash"
    assert ledger.record_test_opening("one", "digest", ["base", "9"]) == 2
    assert ledger.record_test_opening("two", "digest", ["base", "7"]) == 3
    assert ledger.record_test_opening("two", "other", ["base", "7"]) == 1


WRITE_AND_DIE = """
import os, signal, sys
from evosearch.search import ledger as module
from evosearch.search.ledger.ledger import Ledger
ledger = Ledger.open(sys.argv[1])
ledger.append("one", [("started", {"name": "night"})])
def killed(connection):
    connection.exec_driver_sql("INSERT INTO ledger_events VALUES ('one', 2, 0, 0.0, 0.0, 'asked', '{}', '')")
    os.kill(os.getpid(), signal.SIGKILL)
ledger._database.write(killed)
"""


def test_killed_in_a_transaction_leaves_what_was_committed(url: str) -> None:
    ended = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, url], check=False)
    assert ended.returncode == -signal.SIGKILL
    with Ledger.open(url, read_only=True) as reader:
        assert [event.type for event in reader.events("one")] == ["started"]
    with Ledger.open(url) as ledger:
        assert [event.seq for event in ledger.append("one", [("asked", {})])] == [2]


HOLD = """
import sys, time
from evosearch.search.ledger.ledger import Ledger
with Ledger.open(sys.argv[1]) as ledger, ledger.acquire("search-one-of-many"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_to_a_search(ledger: Ledger, url: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LedgerError, match=rf"being run by process {other.pid} on .*, since 20") as caught:
            ledger.acquire("search-one-of-many").__enter__()
        assert "Wait for it" in str(caught.value)
        with Ledger.open(url, read_only=True) as reader:
            held_by = reader.holder("search-one-of-many")
            assert held_by is not None
            assert held_by.startswith(f"process {other.pid} on {socket.gethostname()}, since 20")
            assert held_by in str(caught.value)
            assert reader.holder("another search") is None
        with ledger.acquire("another search"):
            pass
        other.kill()
        other.wait()
    with ledger.acquire("search-one-of-many"):
        assert str(os.getpid()) in str(ledger.holder("search-one-of-many"))
        for _ in range(2):  # a refusal does not release the lock
            with (
                pytest.raises(LedgerError, match=f"this process \\({os.getpid()}\\)"),
                ledger.acquire("search-one-of-many"),
            ):
                pass
        assert ledger.holder("search-one-of-many") is not None
    assert ledger.holder("search-one-of-many") is None


def test_a_lock_leaves_no_file(path: Path) -> None:
    with Ledger.open(f"sqlite:///{path}") as ledger:
        with ledger.acquire("search-one-of-many"):
            assert len(list(path.parent.glob("*.lock"))) == 1
        assert list(path.parent.glob("*.lock")) == []


def test_a_lock_on_a_full_disk_is_refused_and_leaves_no_file(path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger.open(f"sqlite:///{path}") as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))  # no file can be written, as on a full disk
        try:
            with (
                pytest.raises(LedgerError, match=r"\.lock cannot be written: .*\. Free disk space"),
                ledger.acquire("one"),
            ):
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert list(path.parent.glob("*.lock")) == []
        with ledger.acquire("one"):
            assert ledger.holder("one") is not None


FORK_AND_DIE = """
import os, sys, time
from evosearch.search.ledger.ledger import Ledger
with Ledger.open(sys.argv[1]) as ledger, ledger.acquire("search-one-of-many"):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
    print(child, flush=True)
    os._exit(0)
"""


def test_the_lock_is_not_inherited_by_a_fork(ledger: Ledger, url: str) -> None:
    """A child that outlives its killed parent must not keep the search locked."""
    ended = subprocess.Popen([sys.executable, "-c", FORK_AND_DIE, url], stdout=subprocess.PIPE, text=True)
    assert ended.stdout is not None
    child = int(ended.stdout.readline())
    assert ended.wait() == 0
    try:
        os.kill(child, 0)
        with ledger.acquire("search-one-of-many"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        ended.stdout.close()


def test_reading_creates_and_changes_nothing(path: Path) -> None:
    with pytest.raises(LedgerError, match=r"spec\.yaml: ledger: no ledger at .*Run a search first"):
        Ledger.open(f"sqlite:///{path}", where="spec.yaml: ledger", read_only=True)
    assert not path.parent.exists()
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.append("one", [("started", {"name": "night"})])
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    with Ledger.open(f"sqlite:///{path}", read_only=True) as reader:
        assert len(reader.events("one")) == 1
        with pytest.raises(AssertionError):
            reader.append("one", [("asked", {})])
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before


def test_a_reader_sees_the_commits_of_a_running_writer(ledger: Ledger, url: str) -> None:
    ledger.append("one", [("started", {"name": "night"})])
    with Ledger.open(url, read_only=True) as reader:
        assert len(reader.events("one")) == 1
        ledger.append("one", [("asked", {})])
        assert len(reader.events("one")) == 2


def test_a_thread_reads_while_another_writes(ledger: Ledger) -> None:
    """Every read sees a prefix of complete transactions."""
    torn: list[int] = []
    done = threading.Event()

    def mirror() -> None:
        seen = 0
        while not done.is_set() or seen < 120:
            events = ledger.events("one", after=seen)
            if events and [event.seq for event in events] != list(range(seen + 1, seen + 1 + len(events))):
                torn.append(seen)
            if len(events) % 3:
                torn.append(len(events))
            seen += len(events)
            time.sleep(0.001)

    thread = threading.Thread(target=mirror)
    thread.start()
    for index in range(40):
        ledger.append("one", [("asked", {"index": index})] * 3)
    done.set()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert torn == []


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a database; " * 40)
    for read_only in (False, True):
        with pytest.raises(LedgerError, match=r"notes\.txt is not an SQLite database"):
            Ledger.open(f"sqlite:///{path}", read_only=read_only)
    assert path.read_text().startswith("these are notes")
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE experiments (id INTEGER)")
    for read_only in (False, True):
        with pytest.raises(LedgerError, match=r"has no ledger, only other tables: experiments"):
            Ledger.open(f"sqlite:///{path}", read_only=read_only)


def test_an_empty_file_is_not_a_ledger_and_may_become_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    with pytest.raises(LedgerError, match="has no ledger"):
        Ledger.open(f"sqlite:///{path}", read_only=True)
    with Ledger.open(f"sqlite:///{path}") as ledger:
        assert ledger.searches() == []


def test_a_ledger_of_another_version_is_refused(ledger: Ledger, url: str) -> None:
    ledger.append("one", [("started", {"name": "night"})])
    for version, age in ((SCHEMA + 1, "a newer"), (SCHEMA - 1, "an older")):
        alter(url, f"UPDATE ledger_meta SET value = '{version}'")
        for read_only in (False, True):
            said = rf"written by {age} evosearch \(schema {version}\).*reads schema {SCHEMA}"
            with pytest.raises(LedgerError, match=said):
                Ledger.open(url, read_only=read_only)
    alter(url, "DELETE FROM ledger_meta")
    with pytest.raises(LedgerError, match=r"is damaged: its schema version is missing"):
        Ledger.open(url)


def test_half_a_character_in_a_reason_is_recorded(ledger: Ledger) -> None:
    """A file name that is not UTF-8 contains an unpaired surrogate, and is part of a traceback."""
    ledger.append("one", [("failed", {"reason": "no file \udcff", "traceback": "λ \x00"})])
    assert ledger.events("one")[0].payload == {"reason": "no file \udcff", "traceback": "λ \x00"}


def test_a_stream_reads_page_by_page(ledger: Ledger) -> None:
    ledger.append("one", [("asked", {"index": index}) for index in range(150)])
    assert list(ledger.stream("one", after=3)) == ledger.events("one", after=3)
    assert len(ledger.events("one")) == 150
    assert ledger.event("one", 70).payload == {"index": 69}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("runs/ledger.db", "got 'runs/ledger.db'.*sqlite:///PATH"),
        ("mysql://host/db", "got a mysql database"),
        ("sqlite+pysqlite:////x.db", r"got the driver 'sqlite\+pysqlite'"),
        ("postgresql+psycopg2://host/db", r"got the driver 'postgresql\+psycopg2'.*postgresql://HOST/DATABASE"),
        ("postgresql//me:secret@host/db", r"got 'postgresql//\*\*\*@host/db'"),
        ("postgresql://me:secret@host:many/db", r"got 'postgresql://\*\*\*@host:many/db'"),
        ("sqlite://", "in memory would be lost"),
        ("sqlite:////proc/nowhere/ledger.db", "the folder /proc/nowhere cannot be created"),
        ("sqlite:////proc/ledger.db", "/proc/ledger.db cannot be used: unable to open"),
    ],
)
def test_unusable_urls(url: str, said: str) -> None:
    with pytest.raises(LedgerError, match=f"night.yaml: ledger: .*{said}") as caught:
        Ledger.open(url, where="night.yaml: ledger")
    assert "secret" not in str(caught.value)
