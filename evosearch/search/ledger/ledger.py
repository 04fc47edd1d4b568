"""The ledger, the durable record of searches and their only state.

An append-only sequence of events for each search, the score of every item of every candidate, and the openings of test
sets. SQLite by default, PostgreSQL by URL, with the same code. It contains no executable data: payloads are JSON,
scores are compressed float64.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from evosearch.errors import LedgerError
from evosearch.evaluation.types import Column, ItemBatch, ItemSet, ScoreCard
from evosearch.search.ledger import store
from evosearch.search.ledger.append import Appender
from evosearch.search.ledger.database_errors import damaged
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.rows import (
    DamagedRowError,
    column_of,
    dump,
    event_of,
    item_set_of,
    item_set_row,
    score_rows,
    with_checksum,
)
from evosearch.search.ledger.transactions import transactions

Entry = tuple[str, Mapping[str, Any]]  # event type, payload
Result = TypeVar("Result")
PAGE = 64  # events that `stream` keeps in memory


@dataclass(frozen=True)
class SearchInfo:
    """One search of a ledger. Times are seconds since the epoch.

    Without a readable first event, it has no name, and its start is that of its last event.
    """

    search_id: str
    name: str
    started: float
    last_event: float
    events: int
    stopped: str | None  # the reason, if `stopped` is the last event
    damage: str | None = None  # of its first or last event


class Ledger:
    """A database of searches. Reading is safe from any thread; one process writes to a search (`acquire`)."""

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
            where: Name of the ledger in errors, such as `night.yaml: ledger`.
            read_only: Create and change nothing; a missing ledger is an error.
            notice: Called with a message when a server is lost, and when it is back.

        Raises:
            NoLedgerError: There is no ledger to read.
            LedgerError: It cannot be opened, is not a ledger, or was written by another version.
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
        """Close the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def acquire(self, search_id: str) -> Iterator[None]:
        """Hold the writer's lock of a search.

        Raises:
            LedgerError: Another process holds it; the message names it.
        """
        assert not self.read_only
        with self._database.holding(search_id), self._appender.fencing(search_id):
            yield

    def holder(self, search_id: str) -> str | None:
        """Return the process that writes to a search; None if there is none, or it is unknown."""
        return self._database.holder(search_id)

    def hurry(self) -> None:
        """Wait only seconds for a server from now on, because this process is ending. Safe in signal handlers."""
        self._database.hurry()

    # --- events -------------------------------------------------------------------------------------------------

    def append(
        self, search_id: str, entries: Sequence[Entry], scores: Iterable[tuple[str, ScoreCard]] = ()
    ) -> list[Event]:
        """Record events and their scores once, in one transaction; durable on return.

        Args:
            search_id: The search.
            entries: (type, payload of plain JSON data), in order; at least one.
            scores: (candidate, card) with per-item columns, whose item sets are recorded already.

        Raises:
            RecordedTwiceError: A column of this candidate, split and item set exists already.
            LedgerError: The database cannot be written, or another process has written to a locked search.
        """
        assert entries, "scores belong to events"
        columns = [row for candidate, card in scores for row in score_rows(search_id, candidate, card)]
        shared = {"search_id": search_id, "time": time.time(), "clock": time.monotonic()}
        left = range(len(entries) - 1, -1, -1)
        rows: list[dict[str, Any]] = [
            shared | {"type": kind, "payload": dump(payload), "more": more}
            for (kind, payload), more in zip(entries, left, strict=True)
        ]
        self._appender.insert(search_id, rows, columns)
        return [event_of(row) for row in rows]

    def events(
        self, search_id: str, after: int = 0, types: Iterable[str] | None = None, limit: int | None = None
    ) -> list[Event]:
        """Return the events of a search in order.

        Args:
            search_id: The search.
            after: Only events with a greater `seq`.
            types: Only events of these types.
            limit: Maximum number of events.
        """
        at = store.events.c
        query = sa.select(store.events).where(at.search_id == search_id, at.seq > after).order_by(at.seq)
        if types is not None:
            query = query.where(at.type.in_(list(types)))
        return self._events(query.limit(limit))

    def count_events(self, search_id: str, after: int = 0) -> int:
        """Return the number of events of a search with a `seq` greater than `after`."""
        at = store.events.c
        ((last,),) = self._rows(sa.select(sa.func.max(at.seq)).where(at.search_id == search_id))
        return max(0, (last or 0) - after)

    def stream(self, search_id: str, after: int = 0) -> Iterator[Event]:
        """Yield the events of a search page by page, because long searches of many dimensions are large."""
        while found := self.events(search_id, after, limit=PAGE):
            yield from found
            after = found[-1].seq

    def event(self, search_id: str, seq: int) -> Event:
        """Return one recorded event."""
        at = store.events.c
        (found,) = self._events(sa.select(store.events).where(at.search_id == search_id, at.seq == seq))
        return found

    def _events(self, query: sa.Select[Any]) -> list[Event]:
        with self._undamaged():
            return [event_of(row._asdict()) for row in self._rows(query)]

    def searches(self) -> list[SearchInfo]:
        """Return every search that has started, latest first; also those whose first or last event is damaged."""
        at = store.events.c
        spans = sa.select(at.search_id, sa.func.max(at.seq).label("last")).group_by(at.search_id).subquery()
        ends = sa.select(store.events).join(spans, (at.search_id == spans.c.search_id) & (at.seq == spans.c.last))
        begins = sa.select(store.events).where(at.seq == 1)

        def both(connection: Connection) -> tuple[Sequence[Any], Sequence[Any]]:
            return connection.execute(begins).all(), connection.execute(ends).all()

        first, ended = self._database.read(both)
        began = {row.search_id: row._mapping for row in first}
        found = [_info(began.get(row.search_id), row._mapping) for row in ended]
        return sorted((info for info in found if info is not None), key=lambda info: info.started, reverse=True)

    def search_by_name(self, name: str) -> SearchInfo | None:
        """Return the latest search of that name, or None; a search whose first event is damaged has none."""
        return next((info for info in self.searches() if info.name == name), None)

    # --- scores -------------------------------------------------------------------------------------------------

    def put_item_sets(self, batch: ItemBatch) -> None:
        """Record the documents of a batch; existing item sets stay."""
        rows = {items.digest: item_set_row(items) for items in batch.sets}

        def put(connection: Connection) -> None:
            at = store.item_sets.c.digest
            new = rows.keys() - set(connection.scalars(sa.select(at).where(at.in_(list(rows)))))
            if new:  # in a fixed order: two searches that insert the same rows could otherwise deadlock
                insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
                missing = insert(store.item_sets).on_conflict_do_nothing()
                connection.execute(missing, [rows[digest] for digest in sorted(new)])

        self._database.write(put)

    def item_set(self, digest: str) -> ItemSet:
        """Return the documents behind a digest.

        Raises:
            LedgerError: The item set is not recorded here, or damaged.
        """
        found = self._rows(sa.select(store.item_sets).where(store.item_sets.c.digest == digest))
        if not found:
            raise LedgerError(self._where, f"item set {digest[:12]} is not recorded here")
        with self._undamaged():
            return item_set_of(found[0]._asdict())

    def columns(
        self, search_id: str, candidate: str, split: str, digests: Mapping[str, str] | None = None
    ) -> dict[str, dict[str, Column]]:
        """Return per-item scores: task → column → (items,) or (requests,) float64.

        Args:
            search_id: The search.
            candidate: Name of the candidate or baseline.
            split: The split.
            digests: Task → item-set digest, as a score card's `set_digests`; needed if the candidate was scored on
                several item sets of one task.

        Raises:
            DamagedLedgerError: A column is damaged.
        """
        at, sets = store.scores.c, store.item_sets.c
        query = sa.select(sets.task, store.scores).join(store.item_sets, sets.digest == at.digest)
        query = query.where(at.search_id == search_id, at.candidate == candidate, at.split == split)
        if digests is not None:
            query = query.where(at.digest.in_(list(digests.values())))
        found: dict[str, dict[str, Column]] = {}
        with self._undamaged():
            for row in self._rows(query.order_by(sets.task, at.column)):
                columns = dict(row._mapping)
                task = found.setdefault(columns.pop("task"), {})
                assert row.column not in task, f"{candidate} has several item sets of {row.task}: pass digests"
                task[row.column] = column_of(columns)
        return found

    def snapshot(self, work: Callable[[Connection], Result]) -> Result:
        """Run queries of its own on one snapshot of the database, also while a search writes to it.

        Args:
            work: Called with a connection; on a server possibly again, after a lost connection.

        Raises:
            LedgerError: The database cannot be read.
        """
        return self._database.read(work)

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        return self._database.read(lambda connection: connection.execute(query).all())

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        """Report damaged rows with the ledger's name."""
        try:
            yield
        except DamagedRowError as exc:
            raise damaged(self.url, self._where, str(exc)) from None

    # --- test openings ------------------------------------------------------------------------------------------

    def record_test_opening(self, search_id: str, digest: str, candidates: Sequence[str]) -> int:
        """Record that a test set was opened for these candidates. Repeated after a crash, it is counted once.

        Args:
            search_id: The search that opens it.
            digest: `ItemBatch.documents_digest` of the test set.
            candidates: The candidates that are scored on it.

        Returns:
            Number of openings of this test set by all searches of this database.
        """
        at = store.test_openings.c
        row = {"search_id": search_id, "digest": digest, "candidates": dump(sorted(candidates))}
        same = sa.and_(at.search_id == search_id, at.digest == digest, at.candidates == row["candidates"])

        def count(connection: Connection) -> int:
            if connection.dialect.name == "postgresql":  # one at a time, or two would return the same count
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(store.OPENING)))
            if connection.execute(sa.select(at.id).where(same)).first() is None:
                connection.execute(sa.insert(store.test_openings), [with_checksum(row | {"time": time.time()})])
            return _count_openings(connection, digest)

        return self._database.write(count)

    def count_test_openings(self, digest: str) -> int:
        """Return the number of openings of a test set by all searches of this database."""
        return self._database.read(lambda connection: _count_openings(connection, digest))


def _info(first: Mapping[str, Any] | None, last: Mapping[str, Any]) -> SearchInfo | None:
    """Describe a search by the rows of its first and last event; None if its first event is of another kind."""
    name, stopped, damages = "", None, []
    started: float = last["time"]
    try:
        if first is None:
            raise DamagedRowError("its first event is missing")
        begin = event_of(first)
        if begin.type != "started":
            return None
        name, started = str(begin.payload.get("name", "")), begin.time
    except DamagedRowError as exc:
        damages.append(str(exc))
    try:
        end = event_of(last)
        stopped = str(end.payload.get("reason", "")) if end.type == "stopped" else None
    except DamagedRowError as exc:
        damages.append(str(exc))
    damage = "; ".join(dict.fromkeys(damages)) or None
    return SearchInfo(last["search_id"], name, started, last["time"], last["seq"], stopped, damage)


def _count_openings(connection: Connection, digest: str) -> int:
    at = store.test_openings.c
    counted = sa.select(sa.func.count()).select_from(store.test_openings).where(at.digest == digest)
    return int(connection.scalar(counted) or 0)
