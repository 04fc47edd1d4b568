"""A ledger on PostgreSQL with broken connections: no lost or duplicate events, never two writers.

A proxy between ledger and server breaks connections at chosen points; servers and their connections are real.
"""

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sqlalchemy as sa

from evosearch.errors import LedgerError
from evosearch.evaluation.types import Estimate, ItemBatch, ItemSet, ScoreCard
from evosearch.search.ledger import transactions
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.lock import this_host

if TYPE_CHECKING:
    from evosearch.devcluster.postgres import Postgres

ITEMS = ItemSet("sums", "evo_sums", (0, 3, 9), ("a", "b", "c"), ("x", "x", "y"))
BATCH = ItemBatch("search", (ITEMS,))


def card(index: int = 0) -> ScoreCard:
    columns = {"sums": {"acc": np.array([index, 1.0, 1.0])}}
    return ScoreCard("search", BATCH.digest, columns, {"sums": ITEMS.digest}, {}, 50.0, Estimate(0.5, 0.1, 3))


class Proxy:
    """Passes bytes between clients and a server until configured to fail."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[tuple[socket.socket, socket.socket]] = []
        self.lose_answer_to: bytes | None = None  # the client loses its connection before the answer to this
        self.keep_at_server = False  # without the server noticing
        self.starting = 0  # number of clients that are told that the server is starting
        self.trips = 0  # number of requests that were answered
        self._asked = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for client, server in self._ends:
            for end in (client, server):
                _shut(end)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.starting:
                    self.starting -= 1
                    _say_starting(client)
                    continue
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._ends.append((client, server))
                lost = threading.Event()
                threading.Thread(target=self._to_server, args=(client, server, lost), daemon=True).start()
                threading.Thread(target=self._to_client, args=(client, server, lost), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self.lose_answer_to is not None and self.lose_answer_to in data:
                    self.lose_answer_to = None
                    lost.set()
                self._asked = True
                server.sendall(data)
        if not (lost.is_set() and self.keep_at_server):
            _shut(server)

    def _to_client(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if lost.is_set():
                    break
                self.trips, self._asked = self.trips + self._asked, False
                client.sendall(data)
        _shut(client)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _say_starting(client: socket.socket) -> None:
    """PostgreSQL's answer during recovery (protocol 3.0, ErrorResponse)."""
    while True:
        (length,) = struct.unpack("!I", client.recv(4))
        code = struct.unpack("!I", client.recv(length - 4)[:4])[0]
        if code == 196608:  # the startup message; before it a client asks for encryption
            break
        client.sendall(b"N")
    fields = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"
    client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
    client.close()


@pytest.fixture
def proxy(postgres: "Postgres", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    passfile = tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text(postgres.passfile.read_text().replace(f":{postgres.port}:", ":*:"))
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    made = Proxy(postgres.port)
    yield made
    made.close()


@pytest.fixture
def through(proxy: Proxy, postgres: "Postgres", postgres_url: str) -> str:
    """URL of a new database through the proxy."""
    return postgres_url.replace(f":{postgres.port}/", f":{proxy.port}/")


@pytest.fixture
def cut(postgres: "Postgres", postgres_url: str) -> Callable[[], int]:
    """Cut all connections to the database."""
    return lambda: postgres.drop_connections(postgres_url.rsplit("/", 1)[1])


def numbers(ledger: Ledger, search_id: str = "one") -> list[int]:
    """Check that events are numbered without gaps, and return the `index` of each."""
    events = ledger.events(search_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.payload["index"] for event in events]


def test_a_cut_connection_is_reopened_with_a_notice(postgres_url: str, cut: Callable[[], int]) -> None:
    notes: list[str] = []
    with Ledger.open(postgres_url, notice=notes.append) as ledger, ledger.acquire("one"):
        ledger.append("one", [("asked", {"index": 0})])
        assert cut() >= 1
        assert numbers(ledger) == [0], "a reader's too"
        cut()
        ledger.append("one", [("asked", {"index": 1})])
        with Ledger.open(postgres_url, read_only=True) as reader:
            assert "process" in str(reader.holder("one")), "the lock was taken again"
        assert numbers(ledger) == [0, 1]
        cut()
        assert [event.payload for event in ledger.stream("one", after=1)] == [{"index": 1}]
    assert len(notes) == 6
    for lost, back in zip(notes[::2], notes[1::2], strict=True):
        assert lost.startswith("postgresql://evosearch@127.0.0.1:")
        assert "terminating connection due to administrator command" in lost
        assert lost.endswith("Retrying for 300 s")
        assert back.endswith("back after 0 s; nothing was lost")


def test_a_commit_whose_answer_is_lost_is_recognised(proxy: Proxy, through: str) -> None:
    with Ledger.open(through) as ledger:
        ledger.put_item_sets(BATCH)
        with ledger.acquire("one"):
            for index in range(4):
                proxy.lose_answer_to = b"COMMIT" if index % 2 else None
                entries = [("scored", {"index": 2 * index}), ("told", {"index": 2 * index + 1})]
                ledger.append("one", entries, scores=[(str(index), card(index))])
                assert proxy.lose_answer_to is None
        proxy.lose_answer_to = b"COMMIT"
        ledger.append("not held", [("reread", {"index": 0})])
        proxy.lose_answer_to = b"COMMIT"
        ledger.put_item_sets(ItemBatch("test", (ItemSet("moods", "evo_moods", (1,), ("d",), ("z",)),)))
        proxy.lose_answer_to = b"COMMIT"
        assert ledger.record_test_opening("one", "digest", ["base"]) == 1
        assert ledger.record_test_opening("two", "digest", ["base"]) == 2
        assert numbers(ledger) == list(range(8))
        assert numbers(ledger, "not held") == [0]
        assert [ledger.columns("one", str(index), "search")["sums"]["acc"][0] for index in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("point", [b"BEGIN", b"INSERT INTO ledger_events", b"INSERT INTO ledger_scores", b"COMMIT"])
@pytest.mark.parametrize("keep_at_server", [False, True])
def test_our_own_stale_connection_is_terminated(proxy: Proxy, through: str, point: bytes, keep_at_server: bool) -> None:
    """It has the lock of the search, and possibly an open transaction with row locks."""
    proxy.keep_at_server = keep_at_server
    with Ledger.open(through) as ledger:
        ledger.put_item_sets(BATCH)
        with ledger.acquire("one"):
            for index in range(3):
                proxy.lose_answer_to = point
                ledger.append("one", [("scored", {"index": index})], scores=[(str(index), card())])
                assert proxy.lose_answer_to is None
            assert numbers(ledger) == [0, 1, 2]
        assert ledger.holder("one") is None


def test_the_next_append_resolves_one_with_unknown_outcome(
    proxy: Proxy, through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason to stop is recorded after the last event, even if its commit was not confirmed."""
    monkeypatch.setattr(transactions, "PATIENCE_S", -1.0)
    with Ledger.open(through) as ledger, ledger.acquire("one"):
        ledger.append("one", [("asked", {"index": 0})])
        proxy.lose_answer_to = b"COMMIT"
        with pytest.raises(LedgerError, match="cannot be reached"):
            ledger.append("one", [("told", {"index": 1})])
        proxy.lose_answer_to = b"BEGIN"
        with pytest.raises(LedgerError, match="cannot be reached"):
            ledger.append("one", [("stopped", {"index": 99})])
        ledger.append("one", [("stopped", {"index": 2})])
        ledger.append("one", [("started", {"index": 3})])
        assert numbers(ledger) == [0, 1, 2, 3]


def test_a_restart_of_the_server_is_waited_for(postgres: "Postgres", postgres_url: str) -> None:
    notes: list[str] = []
    with Ledger.open(postgres_url, notice=notes.append) as ledger, ledger.acquire("one"):
        ledger.append("one", [("asked", {"index": 0})])
        postgres.crash()
        away = threading.Timer(1.5, postgres.start, kwargs={"durable": False})
        away.start()
        began = time.monotonic()
        ledger.append("one", [("asked", {"index": 1})])
        assert time.monotonic() - began > 1.0
        away.join()
        assert numbers(ledger) == [0, 1]
    postgres.stop()
    postgres.start(durable=False, die_with_parent=True)
    assert "back after" in notes[1]


def test_a_server_that_stays_away_ends_the_run_and_loses_nothing(
    postgres: "Postgres", postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "PATIENCE_S", 1.5)
    with Ledger.open(postgres_url, "night.yaml: ledger") as ledger, ledger.acquire("one"):
        ledger.append("one", [("asked", {"index": 0})])
        postgres.stop()
        with pytest.raises(
            LedgerError,
            match=r"^night.yaml: ledger: postgresql://evosearch@127.0.0.1:\d+/test_\w+ cannot be reached for \d s: "
            r".*Connection refused\. Everything recorded is safe\. "
            r"Once the server is back, run the same command to resume\.$",
        ):
            ledger.append("one", [("asked", {"index": 1})])
        monkeypatch.setattr(transactions, "PATIENCE_S", 60.0)
        began = time.monotonic()
        with pytest.raises(LedgerError, match="cannot be reached"):
            ledger.append("one", [("stopped", {"index": 1})])
        assert time.monotonic() - began < 30.0, "the server is not waited for again"
    postgres.start(durable=False, die_with_parent=True)
    with Ledger.open(postgres_url) as ledger, ledger.acquire("one"):
        ledger.append("one", [("asked", {"index": 1})])
        assert numbers(ledger) == [0, 1]


def test_a_writer_that_lost_its_lock_cannot_write(postgres_url: str, cut: Callable[[], int]) -> None:
    with Ledger.open(postgres_url) as first, Ledger.open(postgres_url) as second, first.acquire("one"):
        first.append("one", [("asked", {"index": 0})])
        first._database._mutex.acquire()  # type: ignore[attr-defined]
        cut()
        with second.acquire("one"):
            first._database._mutex.release()  # type: ignore[attr-defined]
            for _ in range(2):
                with pytest.raises(LedgerError, match=r"this search is being run by process \d+ on .*, since 20"):
                    first.append("one", [("told", {"index": 1})])
            second.append("one", [("asked", {"index": 1})])
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"another process has written to search one .*evosearch status"):
                first.append("one", [("stopped", {"index": 1})])
        assert numbers(first) == [0, 1]


def test_a_server_that_is_starting_is_waited_for(proxy: Proxy, through: str) -> None:
    proxy.starting = 2
    with Ledger.open(through) as ledger:
        assert proxy.starting == 0
        assert ledger.searches() == []


def test_an_append_takes_few_round_trips(proxy: Proxy, through: str) -> None:
    with Ledger.open(through) as ledger:
        ledger.put_item_sets(BATCH)
        with ledger.acquire("one"):
            for index in range(8):
                before = proxy.trips
                entries = [("scored", {"index": 3 * index + i}) for i in range(3)]
                ledger.append("one", entries, scores=[(str(index), card())])
                taken = proxy.trips - before
            assert taken <= 4, "BEGIN with the events, the scores, COMMIT"
            before = proxy.trips
            ledger.events("one", after=20)
            assert proxy.trips - before <= 3


def test_nothing_is_lost_or_doubled_while_connections_are_cut_at_random(
    postgres_url: str, cut: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "FIRST_PAUSE_S", 0.01)
    draw, done, cuts = random.Random(7), threading.Event(), []

    def cutting() -> None:
        while not done.wait(draw.uniform(0.0, 0.15)):
            cuts.append(cut())

    with Ledger.open(postgres_url) as ledger:
        ledger.put_item_sets(BATCH)
        index = 0
        thread = threading.Thread(target=cutting)
        thread.start()
        try:
            with ledger.acquire("one"):
                while index < 300 or sum(cuts) < 20:
                    events = ledger.append("one", [("scored", {"index": index})], scores=[(str(index), card(index))])
                    index += 1
                    assert [event.seq for event in events] == [index]
        finally:
            done.set()
            thread.join()
        assert numbers(ledger) == list(range(index))
        found = [ledger.columns("one", str(index), "search")["sums"]["acc"][0] for index in range(index)]
        assert found == list(range(index))


def test_a_lock_can_be_retaken_twice(proxy: Proxy, through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that took the locks again is lost before all of them were confirmed."""
    proxy.keep_at_server = True
    take, lost = transactions.ServerTransactions._take, []

    def taking(self: transactions.ServerTransactions, connection: Any, search_id: str) -> None:
        take(self, connection, search_id)
        if len(lost) < 2:
            lost.append(search_id)
            proxy.lose_answer_to = b"pg_advisory_unlock"
            connection.execute(sa.text("SELECT pg_advisory_unlock(1)"))

    with Ledger.open(through) as ledger:
        monkeypatch.setattr(transactions.ServerTransactions, "_take", taking)
        with ledger.acquire("one"):  # here first: the lock is free
            assert lost == ["one", "one"]
            lost.clear()
            proxy.lose_answer_to = b"INSERT INTO ledger_events"
            ledger.append("one", [("asked", {"index": 0})])
            assert lost == ["one", "one"]
            assert numbers(ledger) == [0]


def test_a_refused_lock_leaves_other_locks_alone(postgres_url: str) -> None:
    with Ledger.open(postgres_url) as first, Ledger.open(postgres_url) as second:
        stack = ExitStack()
        stack.enter_context(first.acquire("one"))
        stack.enter_context(second.acquire("two"))
        with stack:
            before = second._database._writer  # type: ignore[attr-defined]
            for _ in range(2):
                with pytest.raises(LedgerError, match="this search is being run by process"), second.acquire("one"):
                    pass
            kept = second._database._writer is before  # type: ignore[attr-defined]
            assert kept, "its connection, which holds 'two'"
            second.append("two", [("asked", {"index": 0})])
            assert numbers(second, "two") == [0]


def test_long_host_names_with_different_ends_stay_distinct(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"evosearch-night-of-the-long-experiments-7f9c6d5b8-{end}" for end in ("abcde", "fghij")]
    shown = []
    for name in names:
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        with Ledger.open(postgres_url) as ledger, ledger.acquire("one"):
            holder = ledger.holder("one")
            assert holder is not None
            assert f" on {this_host()}, since" in holder, "nothing of it is cut off"
            shown.append(this_host())
    assert shown[0] != shown[1]
    assert max(map(len, shown)) <= 40
