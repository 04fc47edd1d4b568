"""Appends events, numbered without gaps and recorded once, even if a server's answer is lost."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from evosearch.errors import LedgerError
from evosearch.search.ledger import store
from evosearch.search.ledger.database_errors import shown
from evosearch.search.ledger.rows import checksum
from evosearch.search.ledger.transactions import RecordedTwiceError, Transactions

Row = dict[str, Any]


class Appender:
    """Writes events with consecutive numbers.

    For a search that is locked on a server it remembers the last number instead of querying it. If an answer is lost,
    the same rows are sent again with the same numbers; if those exist, their content shows whether the rows had arrived
    or another process has written. This fences out a stale writer whose lock has expired.
    """

    def __init__(self, database: Transactions, url: sa.URL, where: str) -> None:
        self._database, self._url, self._where = database, url, where
        self._last: dict[str, int] = {}  # locked search on a server → last number
        self._sent: dict[str, list[list[Row]]] = {}  # appends whose outcome is unknown

    @contextmanager
    def fencing(self, search_id: str) -> Iterator[None]:
        """Remember the numbers of a search, whose lock the caller holds."""
        if store.sqlite_path(self._url) is None:
            self._last[search_id] = self._database.read(lambda connection: _last_seq(connection, search_id))
        try:
            yield
        finally:
            self._last.pop(search_id, None)
            self._sent.pop(search_id, None)

    def insert(self, search_id: str, rows: list[Row], columns: list[Row]) -> None:
        """Write events of one search and scores in one transaction, and set each event's `seq`.

        Args:
            search_id: The search.
            rows: Rows of the events.
            columns: Rows of the scores.

        Raises:
            RecordedTwiceError: One of the scores exists already.
            LedgerError: The database cannot be written, or another process has written to a locked search.
        """
        held = search_id in self._last
        last = self._last.get(search_id)
        if held:  # before the write: an interrupt may come right after the commit
            self._sent.setdefault(search_id, []).append(rows)

        def insert(connection: Connection) -> None:
            nonlocal last
            if last is None:
                last = _last_seq(connection, search_id)
            for seq, row in enumerate(rows, start=last + 1):
                row["seq"] = seq
                row["checksum"] = checksum(row)
            connection.execute(sa.insert(store.events), rows)
            if columns:
                connection.execute(sa.insert(store.scores), columns)

        while True:
            try:
                self._database.write(insert)
                break
            except RecordedTwiceError:
                assert last is not None
                if self._are_there(rows):
                    break
                if not self._are_numbers_taken(search_id, last):
                    raise  # the scores exist already
                sent = [one for one in self._sent.get(search_id, []) if "seq" in one[-1]]
                arrived = [one for one in sent if self._are_there(one)]
                if arrived and arrived[0][-1]["seq"] > last:
                    last = arrived[0][-1]["seq"]
                elif held:
                    what = f"another process has written to search {search_id[:12]} in {shown(self._url)}"
                    next = "Find it with evosearch status. Everything recorded by either is safe"
                    raise LedgerError(self._where, what, next=next) from None
                else:
                    last = None
        if held:
            self._last[search_id] = rows[-1]["seq"]
            self._sent.pop(search_id, None)

    def _are_there(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether exactly these events are recorded. They are written together, so the last one decides."""
        at, row = store.events.c, rows[-1]
        query = sa.select(at.time, at.type, at.payload).where(at.search_id == row["search_id"], at.seq == row["seq"])
        found = self._database.read(lambda connection: connection.execute(query).all())
        return [tuple(one) for one in found] == [(row["time"], row["type"], row["payload"])]

    def _are_numbers_taken(self, search_id: str, last: int) -> bool:
        return self._database.read(lambda connection: _last_seq(connection, search_id)) > last


def _last_seq(connection: Connection, search_id: str) -> int:
    at = store.events.c
    return connection.scalar(sa.select(sa.func.max(at.seq)).where(at.search_id == search_id)) or 0
