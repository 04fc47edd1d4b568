"""The ledger: the durable record of searches, and their only state.

An append-only sequence of events for each search, the score of every item of every candidate, and the openings of test
sets. SQLite by default, PostgreSQL by URL, one code for both. Nothing in it can execute: payloads are JSON, scores are
compressed float64.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from evosearch.errors import LedgerError
from evosearch.evaluation.types import Column, ItemBatch, ItemSet, ScoreCard
from evosearch.search.ledger import store
from evosearch.search.ledger.append import Appender
from evosearch.search.ledger.events import PAYLOAD_VERSION, Event
from evosearch.search.ledger.transactions import transactions

Entry = tuple[str, Mapping[str, Any]]  # event type, payload
PAGE = 64  # events that `stream` holds at once


@dataclass(frozen=True)
class SearchInfo:
    """One search of a ledger. Times are seconds since the epoch."""

    search_id: str
    name: str
    started: float
    last_event: float
    events: int
    stopped: str | None  # the reason, where the last event says so


class Ledger:
    """One database of searches. Reading is safe from any thread; one process writes to a search (`acquire`)."""

    def __init__(self, engine: Engine, url: sa.URL, where: str, read_only: bool, notice: Callable[[str], None]) -> None:
        self.url, self._where, self.read_only = url, where, read_only
        self._database = transactions(engine, url, where, read_only, notice)
        self._appender = Appender(self._database, url, where)

    @classmethod
    def open(
        cls,
        url: str,
        where: str = "ledger",
        read_only: bool = False,
        notice: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """Open a ledger, or create it with its folder and tables.

        Args:
            url: `sqlite:///PATH` or `postgresql://…`.
            where: what an error names, as `night.yaml: ledger`.
            read_only: create and change nothing; a ledger that is not there is an error.
            notice: told when a server is lost and waited for, and when it is back.

        Raises:
            NoLedgerError: there is none to read.
            LedgerError: it cannot be opened, is no ledger of ours, or a newer version wrote it.
        """
        parsed = store.parse_url(url, where)
        engine = store.connect(parsed, where, read_only)
        try:
            store.prepare(engine, parsed, where, read_only)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, parsed, where, read_only, notice)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def acquire(self, search_id: str) -> Iterator[None]:
        """Be the one writer of a search.

        Raises:
            LedgerError: another process is; the message says which.
        """
        assert not self.read_only
        with self._database.holding(search_id), self._appender.fencing(search_id):
            yield

    def holder(self, search_id: str) -> str | None:
        """Which process writes to a search now; None where nobody does, or it cannot be told."""
        return self._database.holder(search_id)

    def hurry(self) -> None:
        """From here on wait only seconds for a server: this process is about to end. Signal handlers may call it."""
        self._database.hurry()

    # --- events -------------------------------------------------------------------------------------------------

    def append(
        self, search_id: str, entries: Sequence[Entry], scores: Iterable[tuple[str, ScoreCard]] = ()
    ) -> list[Event]:
        """Record events and the scores that belong to them, all or nothing and once; durable on return.

        Args:
            entries: (type, payload of plain JSON data), in order; at least one.
            scores: (candidate, card) with per-item columns. The item sets must have been put before.

        Raises:
            RecordedTwiceError: a column of this candidate, split and item set is there already.
            LedgerError: the database cannot be written, or another process has written to a search that we hold.
        """
        assert entries, "scores belong to events"
        rows: list[dict[str, Any]] = [
            {"type": kind, "version": PAYLOAD_VERSION, "payload": _dump(payload)} for kind, payload in entries
        ]
        columns = [row for candidate, card in scores for row in _score_rows(search_id, candidate, card)]
        now = time.time()
        for row in rows:
            row |= {"search_id": search_id, "time": now}
        self._appender.insert(search_id, rows, columns)
        return [Event(row["seq"], now, row["type"], json.loads(row["payload"])) for row in rows]

    def events(
        self, search_id: str, after: int = 0, types: Iterable[str] | None = None, limit: int | None = None
    ) -> list[Event]:
        """The events of a search with `seq` greater than `after`, in order; the first `limit` of them.

        Raises:
            LedgerError: a newer version wrote one of them.
        """
        at = store.events.c
        query = sa.select(at.seq, at.time, at.type, at.version, at.payload)
        query = query.where(at.search_id == search_id, at.seq > after).order_by(at.seq)
        if types is not None:
            query = query.where(at.type.in_(list(types)))
        return self._events(query.limit(limit), search_id)

    def count_events(self, search_id: str, after: int = 0) -> int:
        """How many events of a search have a `seq` greater than `after`: numbers are without gaps."""
        at = store.events.c
        ((last,),) = self._rows(sa.select(sa.func.max(at.seq)).where(at.search_id == search_id))
        return max(0, (last or 0) - after)

    def stream(self, search_id: str, after: int = 0) -> Iterator[Event]:
        """What `events` gives, without holding all of it: long searches of many dimensions are large.

        Raises:
            LedgerError: a newer version wrote one of them.
        """
        while found := self.events(search_id, after, limit=PAGE):
            yield from found
            after = found[-1].seq

    def event(self, search_id: str, seq: int) -> Event:
        """One recorded event."""
        at = store.events.c
        query = sa.select(at.seq, at.time, at.type, at.version, at.payload)
        (found,) = self._events(query.where(at.search_id == search_id, at.seq == seq), search_id)
        return found

    def _events(self, query: sa.Select[Any], search_id: str) -> list[Event]:
        rows = self._rows(query)
        for row in rows:
            if row.version > PAYLOAD_VERSION:
                what = f"event {row.seq} of {search_id[:12]} has version {row.version}"
                raise LedgerError(self._where, what, f"This evosearch reads {PAYLOAD_VERSION}", "Update evosearch")
        return [Event(row.seq, row.time, row.type, json.loads(row.payload)) for row in rows]

    def searches(self) -> list[SearchInfo]:
        """Every search that has started, the latest first."""
        at = store.events.c
        spans = sa.select(at.search_id, sa.func.max(at.seq).label("last")).group_by(at.search_id).subquery()
        ends = sa.select(at.search_id, at.seq, at.time, at.type, at.payload).join(
            spans, (at.search_id == spans.c.search_id) & (at.seq == spans.c.last)
        )
        begins = sa.select(at.search_id, at.time, at.payload).where(at.seq == 1, at.type == "started")

        def both(connection: Connection) -> tuple[Sequence[Any], Sequence[Any]]:
            return connection.execute(begins).all(), connection.execute(ends).all()

        first, ended = self._database.read(both)
        last = {row.search_id: row for row in ended}
        found = [_info(begin, last[begin.search_id]) for begin in first]
        return sorted(found, key=lambda info: info.started, reverse=True)

    def search_by_name(self, name: str) -> SearchInfo | None:
        """The latest search of that name, or None."""
        return next((info for info in self.searches() if info.name == name), None)

    # --- scores -------------------------------------------------------------------------------------------------

    def put_item_sets(self, batch: ItemBatch) -> None:
        """Record which documents a batch holds. What is there already stays."""
        rows = {items.digest: _item_set_row(items) for items in batch.sets}

        def put(connection: Connection) -> None:
            at = store.item_sets.c.digest
            new = rows.keys() - set(connection.scalars(sa.select(at).where(at.in_(list(rows)))))
            if new:  # another search may put the same at the same time: in one order, or each waits for the other
                insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
                missing = insert(store.item_sets).on_conflict_do_nothing()
                connection.execute(missing, [rows[digest] for digest in sorted(new)])

        self._database.write(put)

    def item_set(self, digest: str) -> ItemSet:
        """The documents behind a digest.

        Raises:
            LedgerError: no such item set is recorded here.
        """
        found = self._rows(sa.select(store.item_sets).where(store.item_sets.c.digest == digest))
        if not found:
            raise LedgerError(self._where, f"no item set {digest[:12]} is recorded here")
        (row,) = found
        data = json.loads(zlib.decompress(row.data))
        doc_ids, doc_hashes, groups = (tuple(data[key]) for key in ("doc_ids", "doc_hashes", "groups"))
        return ItemSet(row.task, row.lm_eval_task, doc_ids, doc_hashes, groups, data.get("documents", ""))

    def columns(
        self, search_id: str, candidate: str, split: str, digests: Mapping[str, str] | None = None
    ) -> dict[str, dict[str, Column]]:
        """Per-item scores: task → column → values, float64.

        Args:
            digests: task → item-set digest, as a score card's `set_digests`; needed where a candidate was scored on
                several item sets of one task.
        """
        at, sets = store.scores.c, store.item_sets.c
        query = sa.select(sets.task, at.digest, at.column, at.data).join(store.item_sets, sets.digest == at.digest)
        query = query.where(at.search_id == search_id, at.candidate == candidate, at.split == split)
        if digests is not None:
            query = query.where(at.digest.in_(list(digests.values())))
        found: dict[str, dict[str, Column]] = {}
        for row in self._rows(query.order_by(sets.task, at.column)):
            task = found.setdefault(row.task, {})
            assert row.column not in task, f"{candidate} has several item sets of {row.task}: say which"
            task[row.column] = np.frombuffer(zlib.decompress(row.data), dtype="<f8").astype(np.float64)
        return found

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        return self._database.read(lambda connection: connection.execute(query).all())

    # --- test openings ------------------------------------------------------------------------------------------

    def record_test_opening(
        self, search_id: str, digest: str, candidates: Sequence[str], known_as: Sequence[str] = ()
    ) -> int:
        """Record that a test set was opened for these candidates; the same opening again, after a crash, is one.

        Args:
            digest: of the test set's documents.
            known_as: digests that earlier versions recorded this test set by: openings of either are of one test set.

        Returns:
            How often this test set has been opened, by all searches of this database.
        """
        at = store.test_openings.c
        row = {"search_id": search_id, "digest": digest, "candidates": _dump(sorted(candidates))}
        same = sa.and_(
            at.search_id == search_id, at.digest.in_([digest, *known_as]), at.candidates == row["candidates"]
        )

        def count(connection: Connection) -> int:
            if connection.dialect.name == "postgresql":  # one after the other, or two would count the same
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(store.OPENING)))
            if connection.execute(sa.select(at.id).where(same)).first() is None:
                connection.execute(sa.insert(store.test_openings), [row | {"time": time.time()}])
            return _count_openings(connection, digest, *known_as)

        return self._database.write(count)

    def count_test_openings(self, *digests: str) -> int:
        """How often a test set has been opened, by all searches of this database, under any of its digests."""
        return self._database.read(lambda connection: _count_openings(connection, *digests))


def _info(begin: Any, last: Any) -> SearchInfo:
    name = str(json.loads(begin.payload).get("name", ""))
    stopped = str(json.loads(last.payload).get("reason", "")) if last.type == "stopped" else None
    return SearchInfo(begin.search_id, name, begin.time, last.time, last.seq, stopped)


def _dump(payload: Any) -> str:
    """Plain JSON. NaN and infinity are not: a score that is not finite is a failure, with a reason."""
    text = json.dumps(payload, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: of a file's name in a traceback, say
        return json.dumps(payload, allow_nan=False, separators=(",", ":"))
    return text


def _count_openings(connection: Connection, *digests: str) -> int:
    at = store.test_openings.c
    counted = sa.select(sa.func.count()).select_from(store.test_openings).where(at.digest.in_(digests))
    return int(connection.scalar(counted) or 0)


def _item_set_row(items: ItemSet) -> dict[str, Any]:
    data: dict[str, Any] = {"doc_ids": items.doc_ids, "doc_hashes": items.doc_hashes, "groups": items.groups}
    data |= {"documents": items.documents} if items.documents else {}
    packed = zlib.compress(_dump(data).encode())
    return {"digest": items.digest, "task": items.task, "lm_eval_task": items.lm_eval_task, "data": packed}


def _score_rows(search_id: str, candidate: str, card: ScoreCard) -> Iterator[dict[str, Any]]:
    for task, columns in card.columns.items():
        for name, values in columns.items():
            array = np.ascontiguousarray(values, dtype="<f8")
            assert array.ndim == 1, f"{task} {name}: one number an item or request"
            yield {
                "search_id": search_id,
                "candidate": candidate,
                "split": card.split,
                "digest": card.set_digests[task],
                "column": name,
                "n": array.size,
                "data": zlib.compress(array.tobytes()),
            }
