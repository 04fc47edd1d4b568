"""Damaged, locked and full ledgers: each is told by its code; what is intact is found, copied and recovered."""

import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from evosearch.errors import LedgerError, LedgerUnavailableError
from evosearch.evaluation.types import Estimate, ItemBatch, ItemSet, ScoreCard
from evosearch.search.ledger import backup, store
from evosearch.search.ledger.database_errors import DamagedLedgerError
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.rows import DamagedRowError, checksum, inflated
from evosearch.search.ledger.salvage import Salvage
from evosearch.search.ledger.sqlite_pages import rows_of
from evosearch.search.ledger.verify import Verified, verify
from evosearch.search.state import SearchState

SETS = (
    ItemSet("sums", "evo_sums", tuple(range(40)), tuple(f"{n:064x}" for n in range(40)), ("x",) * 40),
    ItemSet("moods", "evo_moods", (1,), ("d",)),
)
BATCH = ItemBatch("search", SETS)
PAGE = 4096


def card(seed: int) -> ScoreCard:
    draw = np.random.default_rng(seed)
    columns = {"sums": {"acc": draw.random(40), "gold": draw.random(40)}, "moods": {"acc": np.ones(1)}}
    digests = {items.task: items.digest for items in SETS}
    return ScoreCard("search", BATCH.digest, columns, digests, {}, 50.0, Estimate(0.5, 0.1, 41))


def record(ledger: Ledger, search_id: str, groups: int = 6) -> None:
    """Record a search of groups of four: proposed together, scored one by one, reported together."""
    ledger.put_item_sets(BATCH)
    ledger.append(search_id, [("started", {"name": f"name of {search_id}", "spec": {}})])
    for group in range(groups):
        names = [str(4 * group + index) for index in range(4)]
        ledger.append(search_id, [("asked", asked(name, group)) for name in names])
        for name in names:
            scored = {"candidate": name, "worker": "w", "minibatch": None, "recipe_id": name} | card(
                int(name)
            ).summary()
            ledger.append(search_id, [("scored", scored)], scores=[(name, card(int(name)))])
        ledger.append(search_id, [("told", {"group": group, "observations": []})])
    ledger.append(search_id, [("stopped", {"reason": "candidates"})])


def asked(name: str, group: int) -> dict[str, Any]:
    recipe = {"filler": "λ" * random.Random(name).randrange(3000)}  # some are longer than a page
    return {"candidate": name, "group": group, "recipe_id": name, "duplicate_of": None, "genome": {}, "recipe": recipe}


@pytest.fixture
def path(tmp_path: Path, no_power_cuts: None) -> Path:
    """A ledger with two searches, closed."""
    file = tmp_path / "ledger.db"
    with Ledger.open(f"sqlite:///{file}") as ledger:
        for search_id in ("one", "two"):
            record(ledger, search_id)
        ledger.record_test_opening("one", "digest", ["base"])
    return file


def verified(path: Path) -> Verified:
    with Ledger.open(f"sqlite:///{path}", "night", read_only=True) as ledger:
        return ledger.snapshot(verify)


def problems(path: Path) -> list[str]:
    found = verified(path)
    return [*found.problems, *(text for search in found.searches for text in search.problems)]


def alter(path: Path, statement: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement, values).rowcount > 0
        connection.commit()


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


# --- damage of the file ---------------------------------------------------------------------------------------------


def middle_pages(path: Path) -> None:
    count = path.stat().st_size // PAGE
    overwrite(path, PAGE, random.Random(3).randbytes((count - 1) * PAGE))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def almost_nothing(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def no_header(path: Path) -> None:
    overwrite(path, 0, bytes(100))


DAMAGES = [
    (middle_pages, "is damaged"),
    (half, "is damaged"),
    (almost_nothing, "is damaged"),
    (no_header, "or its start"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[one.__name__ for one, _ in DAMAGES])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_file_is_told_as_damage(
    path: Path, damage: Callable[[Path], None], said: str, read_only: bool
) -> None:
    """Once: 'Make room on its disk: what was recorded is safe', because SQLite's message has the word disk."""
    damage(path)
    before = path.read_bytes()
    with (
        pytest.raises(DamagedLedgerError) as caught,
        Ledger.open(f"sqlite:///{path}", "night.yaml: ledger", read_only=read_only) as ledger,
    ):
        ledger.events("one")
    text = str(caught.value)
    assert text.startswith(f"night.yaml: ledger: {path} ")
    assert said in text
    assert "estore a backup" in text
    assert "evosearch ledger recover" in text
    assert "disk space" not in text
    assert caught.value.exit_code == 2
    assert path.read_bytes() == before


HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE ledger_meta SET value = value")
print("held", flush=True)
time.sleep(600)
"""


def test_a_locked_file_names_the_process_that_locks_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_S", 0.3)
    with (
        Ledger.open(f"sqlite:///{path}", "night") as ledger,
        subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as other,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LedgerUnavailableError) as caught:
            ledger.append("three", [("started", {})])
        other.kill()
        other.wait()
        ledger.append("three", [("started", {})])
    assert f"{path} is locked by process {other.pid} (python" in str(caught.value)
    assert "then run the same command to resume; everything recorded is safe" in str(caught.value)
    assert caught.value.exit_code == 1, "the input is right"


def test_a_full_database_is_not_bad_input(path: Path) -> None:
    """SQLITE_FULL itself, by a limit on the pages of the database."""
    with Ledger.open(f"sqlite:///{path}", "night") as ledger:

        def full(connection: sa.Connection) -> None:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            filler = {"search_id": "x", "seq": 1, "more": 0, "time": 0.0, "clock": 0.0, "type": "asked", "checksum": ""}
            connection.execute(sa.insert(store.events), [filler | {"payload": "x" * 10**6}])

        with pytest.raises(
            LedgerUnavailableError, match=r"disk is full\. Free disk space, then run the same"
        ) as caught:
            ledger._database.write(full)
    assert caught.value.exit_code == 1


# --- damage of a row ------------------------------------------------------------------------------------------------

CHANGES = [
    ("payload", "replace(payload, 'name of', 'nome of')"),
    ("payload", "substr(payload, 1, length(payload) - 10)"),  # as in the attack: ten bytes cut off
    ("payload", "cast(x'7b22ff80' AS TEXT)"),  # not UTF-8
    ("payload", "7"),
    ("type", "'stopped'"),
    ("time", "time + 1"),
    ("clock", "clock + 1"),
    ("more", "more + 1"),
]


@pytest.mark.parametrize(("column", "change"), CHANGES)
@pytest.mark.parametrize("seq", [1, 10])
def test_a_changed_event_is_found_and_hides_no_other_search(path: Path, column: str, change: str, seq: int) -> None:
    alter(path, f"UPDATE ledger_events SET {column} = {change} WHERE search_id = 'one' AND seq = {seq}")
    with Ledger.open(f"sqlite:///{path}", "night", read_only=True) as ledger:
        changed = f"event {seq} of search one has changed since it was written"
        if column == "payload" and seq == 10 and "nome" in change:
            assert ledger.events("one"), "nothing to replace there"
        else:
            with pytest.raises(DamagedLedgerError, match=f"night: .*ledger.db is damaged: {changed}"):
                ledger.events("one")
        assert len(ledger.events("two")) == 56
        infos = {info.search_id: info for info in ledger.searches()}
        assert infos["two"].damage is None
        if seq == 1:
            assert (infos["one"].name, infos["one"].damage, infos["one"].stopped) == ("", changed, "candidates")
            assert ledger.search_by_name("name of one") is None
    if seq == 1:
        assert changed in problems(path)


@pytest.mark.parametrize("payload", ['{"name": ', "[" * 100_000, "NaN,", ""])
def test_a_payload_that_is_not_json_is_damage_even_with_a_checksum(path: Path, payload: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM ledger_events WHERE search_id = 'one' AND seq = 5").fetchone())
        row["payload"] = payload
        connection.execute(
            "UPDATE ledger_events SET payload = ?, checksum = ? WHERE search_id = 'one' AND seq = 5",
            (payload, checksum(row)),
        )
        connection.commit()
    with (
        Ledger.open(f"sqlite:///{path}", "night", read_only=True) as ledger,
        pytest.raises(DamagedLedgerError, match="event 5 of search one is not JSON"),
    ):
        ledger.events("one")


@pytest.mark.parametrize("change", ["data = zeroblob(length(data))", "n = n - 1", "data = substr(data, 1, 20)"])
def test_a_changed_score_is_found(path: Path, change: str) -> None:
    alter(
        path, f"UPDATE ledger_scores SET {change} WHERE search_id = 'one' AND candidate = '7' AND \"column\" = 'gold'"
    )
    said = "column gold of 7 on search has changed since it was written"
    with Ledger.open(f"sqlite:///{path}", "night", read_only=True) as ledger:
        with pytest.raises(DamagedLedgerError, match=said):
            ledger.columns("one", "7", "search")
        assert ledger.columns("one", "8", "search").keys() == {"sums", "moods"}
        assert ledger.columns("two", "7", "search").keys() == {"sums", "moods"}
    assert said in problems(path)


def bomb(path: Path) -> None:
    """Replace a column and an item set by a decompression bomb, with valid checksums."""
    packed = _zeros()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        where = "search_id = 'one' AND candidate = '3' AND \"column\" = 'gold'"
        row = dict(connection.execute(f"SELECT * FROM ledger_scores WHERE {where}").fetchone()) | {"data": packed}
        connection.execute(f"UPDATE ledger_scores SET data = ?, checksum = ? WHERE {where}", (packed, checksum(row)))
        connection.execute("UPDATE ledger_item_sets SET data = ? WHERE task = 'moods'", (packed,))
        connection.commit()


def _zeros() -> bytes:
    """A megabyte or two that unpack to more than the limit of an item set."""
    packing, zeros = zlib.compressobj(1), bytes(2**24)
    return b"".join([packing.compress(zeros) for _ in range(17)] + [packing.flush()])


def test_a_decompression_bomb_is_damage_and_takes_no_memory(path: Path) -> None:
    bomb(path)
    with Ledger.open(f"sqlite:///{path}", "night", read_only=True) as ledger:
        tracemalloc.start()
        with pytest.raises(DamagedLedgerError, match="column gold of 3 on search has more than 320 bytes"):
            ledger.columns("one", "3", "search")
        assert tracemalloc.get_traced_memory()[1] < 2**24
        with pytest.raises(DamagedLedgerError, match=r"item set \w+ has more than 268435456 bytes"):
            ledger.item_set(SETS[1].digest)
        assert tracemalloc.get_traced_memory()[1] < 2**30
        tracemalloc.stop()


def test_what_is_cut_off_or_too_long_is_not_unpacked() -> None:
    packed = zlib.compress(bytes(100))
    assert inflated(packed, 100, "x") == bytes(100)
    for data, most, said in (
        (packed, 99, "x has more than 99 bytes"),
        (packed[:-5], 100, "x is incomplete"),
        (b"nonsense", 100, "x cannot be unpacked"),
        (b"", 100, "x is incomplete"),
    ):
        with pytest.raises(DamagedRowError, match=said):
            inflated(data, most, "x")


# --- verify ---------------------------------------------------------------------------------------------------------


def test_an_intact_ledger_has_no_problems(path: Path) -> None:
    found = verified(path)
    assert problems(path) == []
    assert found.ok
    assert {(one.name, one.events, one.columns) for one in found.searches} == {
        ("name of one", 56, 72),
        ("name of two", 56, 72),
    }
    assert (found.item_sets, found.test_openings) == (2, 1)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM ledger_events WHERE search_id = 'one' AND seq = 7", "events 7 to 7 are missing"),
        ("DELETE FROM ledger_events WHERE search_id = 'one' AND seq <= 3", "events 1 to 3 are missing"),
        ("DELETE FROM ledger_events WHERE search_id = 'one' AND seq >= 4", "2 events after the last one are missing"),
        ("DELETE FROM ledger_events WHERE search_id = 'one'", "72 columns of search one, which has no events"),
        (
            "DELETE FROM ledger_scores WHERE search_id = 'one' AND candidate = '5' AND \"column\" = 'gold'",
            "item scores of 5 on search are missing: 1 of 2 columns",
        ),
        (
            "DELETE FROM ledger_scores WHERE search_id = 'one' AND candidate = '5'",
            "item scores of 5 on search are missing: 0 of 2 columns",
        ),
        (
            "DELETE FROM ledger_item_sets WHERE task = 'moods'",
            "the documents of moods that 0 was scored on are missing",
        ),
        ("UPDATE ledger_item_sets SET task = 'other' WHERE task = 'moods'", "has changed since it was written"),
        ("UPDATE ledger_test_openings SET digest = 'another'", "test opening 1 has changed since it was written"),
    ],
)
def test_what_is_missing_or_changed_is_listed(path: Path, statement: str, said: str) -> None:
    alter(path, statement)
    assert not verified(path).ok
    assert any(said in text for text in problems(path)), problems(path)


def test_damaged_pages_are_listed_as_far_as_sqlite_finds_them(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ledger_scores'").fetchone()
    overwrite(path, (root - 1) * PAGE, bytes(8))
    found = problems(path)
    assert any(text.startswith("SQLite: ") for text in found)
    assert found[-1].startswith("the rest cannot be read: ") or len(found) > 1


# --- copies while a search writes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_copies_are_consistent_while_a_search_writes(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, no_power_cuts: None
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db" if kind == "sqlite" else str(request.getfixturevalue("postgres_url"))
    copy = backup.copy_file if kind == "sqlite" else backup.copy_rows
    with Ledger.open(url) as ledger:
        record(ledger, "zero", 1)
        writer = threading.Thread(target=lambda: [record(ledger, f"search {index}", 3) for index in range(4)])
        writer.start()
        counts, number = [], 0
        while writer.is_alive() or number < 3:
            out = tmp_path / f"copy{number}.db"
            with Ledger.open(url, read_only=True) as reader:
                reader.snapshot(lambda connection, out=out: copy(connection, out))
            found = verified(out)
            assert found.ok, problems(out)
            counts.append(sum(one.events for one in found.searches))
            number += 1
        writer.join()
    assert counts == sorted(counts)
    assert not list(tmp_path.glob("copy*-*")), "no side files"


# --- recovery -------------------------------------------------------------------------------------------------------


def sql_rows(path: Path) -> set[tuple[Any, ...]]:
    """All rows as SQLite reads them, with text as bytes and round numbers as integers, as in the file."""
    tables = ("ledger_events", "ledger_scores", "ledger_item_sets", "ledger_meta", "ledger_test_openings")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        found = [row for table in tables for row in connection.execute(f"SELECT * FROM {table}")]
    return {tuple(None if table_id(row, index) else value for index, value in enumerate(row)) for row in found}


def table_id(row: tuple[Any, ...], index: int) -> bool:
    return len(row) == 6 and index == 0  # a test opening's number is the rowid, and not stored in the row


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_pages_are_read_as_sqlite_reads_them(path: Path, tmp_path: Path, page_size: int) -> None:
    sized = tmp_path / "sized.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute(f"VACUUM INTO '{sized}'")
    found = list(rows_of(sized))
    assert sql_rows(sized) <= set(found)
    assert len([row for row in found if len(row) == 8]) == 2 * (56 + 72)


@pytest.fixture
def live(tmp_path: Path, no_power_cuts: None) -> Path:
    """A copy of a ledger in use: everything committed is in the write-ahead log, as is half of a transaction."""
    file, copied = tmp_path / "ledger.db", tmp_path / "copied.db"
    with Ledger.open(f"sqlite:///{file}") as ledger:
        record(ledger, "one")

        def half_written(connection: sa.Connection) -> None:
            connection.exec_driver_sql("PRAGMA cache_spill = 1")
            connection.exec_driver_sql("PRAGMA cache_size = 1")
            filler = {
                "search_id": "x",
                "more": 0,
                "time": 0.0,
                "clock": 0.0,
                "type": "asked",
                "payload": '"' + "x" * 9000 + '"',
            }
            for seq in range(1, 60):
                row = filler | {"seq": seq}
                connection.execute(sa.insert(store.events), [row | {"checksum": checksum(row)}])
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{file}{suffix}", f"{copied}{suffix}")
            raise KeyError

        with contextlib.suppress(KeyError):
            ledger._database.write(half_written)
    return copied


def test_only_committed_rows_are_read_from_the_log(live: Path) -> None:
    assert live.stat().st_size <= PAGE
    assert live.with_name("copied.db-wal").read_bytes().count(b"x" * 2000) > 50, "the transaction has reached the file"
    found = Salvage.read(live)
    assert set(found.events) == {"one"}
    assert len(found.events["one"]) == 56
    log = live.with_name("copied.db-wal")
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size // 3)
    fewer = Salvage.read(live)
    numbers = sorted(fewer.events.get("one", {}))
    assert numbers == list(range(1, len(numbers) + 1)), "what was committed first"
    assert len(numbers) < 56


def recovered(path: Path) -> tuple[Path, dict[str, int]]:
    """Recover a file; return the new one, and the number of events kept of each search."""
    out = path.with_name("recovered.db")
    out.unlink(missing_ok=True)
    engine = sa.create_engine(f"sqlite:///{out}")
    with engine.begin() as connection:
        store.create_tables(connection)
        found = Salvage.read(path).write(connection)
    engine.dispose()
    return out, {one.search_id: one.kept for one in found}


def all_rows(path: Path, search_id: str) -> tuple[list[Any], dict[str, Any]]:
    with Ledger.open(f"sqlite:///{path}", read_only=True) as ledger:
        events = ledger.events(search_id)
        scored = [event.payload["candidate"] for event in events if event.type == "scored"]
        columns = {name: ledger.columns(search_id, name, "search") for name in scored}
    return events, columns


def test_an_intact_file_is_recovered_entirely(path: Path) -> None:
    out, kept = recovered(path)
    assert kept == {"one": 56, "two": 56}
    assert verified(out).ok
    for search_id in kept:
        (events, columns), (new_events, new_columns) = (all_rows(one, search_id) for one in (path, out))
        assert events == new_events
        for name in columns:
            for task in columns[name]:
                for column, values in columns[name][task].items():
                    assert np.array_equal(values, new_columns[name][task][column])
    with Ledger.open(f"sqlite:///{out}") as ledger:
        assert ledger.count_test_openings("digest") == 1
        assert ledger.append("one", [("started", {})])[0].seq == 57


def boundaries(path: Path) -> set[int]:
    """Numbers of events that end a transaction of search `one`, and 0."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        query = "SELECT seq FROM ledger_events WHERE search_id = 'one' AND more = 0"
        return {0} | {seq for (seq,) in connection.execute(query)}


@pytest.mark.parametrize("seed", range(6))
def test_what_is_recovered_is_a_consistent_beginning(path: Path, seed: int) -> None:
    """Any pages are destroyed, also the first, and the indexes."""
    ends, whole = boundaries(path), {one: all_rows(path, one)[0] for one in ("one", "two")}
    draw = random.Random(seed)
    pages = path.stat().st_size // PAGE
    for page in draw.sample(range(pages), 1 + seed):
        overwrite(path, page * PAGE + draw.randrange(2) * 50, draw.randbytes(PAGE // 2))
    out, kept = recovered(path)
    found = verified(out)
    assert found.ok, problems(out)
    for search_id, count in kept.items():
        assert count in ends
        if count:
            assert all_rows(out, search_id)[0] == whole[search_id][:count]


def test_a_lost_column_ends_what_is_kept_before_its_result(path: Path) -> None:
    alter(path, "DELETE FROM ledger_scores WHERE search_id = 'one' AND candidate = '5' AND \"column\" = 'gold'")
    out, kept = recovered(path)
    assert kept["two"] == 56
    events, columns = all_rows(out, "one")
    assert events[-1].payload["candidate"] == "4", "the transaction before the result of 5"
    assert sorted(columns) == ["0", "1", "2", "3", "4"]
    with Ledger.open(f"sqlite:///{out}") as ledger:  # the next result can be recorded: no column of it is left
        assert ledger.columns("one", "5", "search") == {}
        scored = {"candidate": "5"} | card(5).summary()
        ledger.append("one", [("scored", scored)], scores=[("5", card(5))])


def test_rows_of_another_program_are_no_rows_of_ours(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (a, b, c, d, e, f, g, h)")
        connection.executemany(
            "INSERT INTO t VALUES (?,?,?,?,?,?,?,?)", [("one", 1, 0, 1.0, 1.0, "asked", "{}", "0" * 16)] * 9
        )
        connection.commit()
    found = Salvage.read(other)
    assert not found.events
    (tmp_path / "noise.db").write_bytes(random.Random(1).randbytes(200_000))
    assert not Salvage.read(tmp_path / "noise.db").events
    (tmp_path / "empty.db").touch()
    assert not Salvage.read(tmp_path / "empty.db").events


def test_json_of_rows_is_plain() -> None:
    assert json.loads(json.dumps(card(1).summary()))["columns"] == {"sums": 2, "moods": 1}


def test_a_reader_never_takes_a_search_for_damaged_that_is_just_starting(tmp_path: Path, no_power_cuts: None) -> None:
    """The first and the last events of all searches are read in one snapshot."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(url) as ledger, Ledger.open(url, read_only=True) as reader:
        ledger.append("first", [("started", {"name": "first"})])
        done = threading.Event()

        def write() -> None:
            for index in range(200):
                ledger.append(f"search {index}", [("started", {"name": f"{index}"})])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            assert [info.damage for info in reader.searches() if info.damage] == []
        writer.join()


@pytest.mark.parametrize("payload", [{}, {"candidate": []}, {"observations": 7}])
def test_an_intact_payload_of_another_kind_is_an_error_that_names_the_event(
    path: Path, payload: dict[str, Any]
) -> None:
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.append("two", [("told", payload)])
        with pytest.raises(LedgerError, match=r"event 57 \(told\) is not what this version writes: \w+Error"):
            SearchState.from_events(ledger.events("two"))
    assert any("event 57 (told) is not what this version writes" in text for text in problems(path))


def test_errors_of_ledgers_keep_their_kind(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(f"sqlite:///{tmp_path}/none.db", read_only=True)
    assert not isinstance(caught.value, DamagedLedgerError | LedgerUnavailableError)
