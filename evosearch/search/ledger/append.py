"""Events are numbered without gaps and recorded once, also where a server's answer is lost or another one writes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from evosearch.errors import LedgerError
from evosearch.search.ledger import store
from evosearch.search.ledger.errors import shown
from evosearch.search.ledger.transactions import RecordedTwiceError, Transactions

Row = dict[str, Any]


class Appender:
    """Writes events under the numbers that follow.

    Of a search that is held on a server it knows the last number, and asks no more. Where an answer is lost the same
    rows are sent again, under the same numbers; if those are taken, what stands there tells whether the rows had
    arrived, or somebody else has written. That fences a writer off who lost his lock without noticing.
    """

    def __init__(self, database: Transactions, url: sa.URL, where: str) -> None:
        self._database, self._url, self._where = database, url, where
        self._last: dict[str, int] = {}  # of a search held on a server: the number that we wrote, or found, last
        self._sent: dict[str, list[list[Row]]] = {}  # appends that ended without it being known how

    @contextmanager
    def fencing(self, search_id: str) -> Iterator[None]:
        """From here on nobody else writes to this search: the caller holds its lock."""
        if store.sqlite_path(self._url) is None:
            self._last[search_id] = self._database.read(lambda connection: _last_seq(connection, search_id))
        try:
            yield
        finally:
            self._last.pop(search_id, None)
            self._sent.pop(search_id, None)

    def insert(self, search_id: str, rows: list[Row], columns: list[Row]) -> None:
        """Write events, of one search, and scores, as a whole; gives each event its `seq`.

        Raises:
            RecordedTwiceError: one of the scores is there already.
            LedgerError: the database cannot be written, or another process has written to a search that we hold.
        """
        held = search_id in self._last
        last = self._last.get(search_id)
        if held:  # before they are: an interrupt may come right after the commit
            self._sent.setdefault(search_id, []).append(rows)

        def insert(connection: Connection) -> None:
            nonlocal last
            if last is None:
                last = _last_seq(connection, search_id)
            for seq, row in enumerate(rows, start=last + 1):
                row["seq"] = seq
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
                    raise  # it is the scores
                sent = [one for one in self._sent.get(search_id, []) if "seq" in one[-1]]
                arrived = [one for one in sent if self._are_there(one)]
                if arrived and arrived[0][-1]["seq"] > last:
                    last = arrived[0][-1]["seq"]
                elif held:
                    what = f"another process has written to search {search_id[:12]} in {shown(self._url)}"
                    next = "See which runs it: evosearch status. What it recorded is safe, and so is what we did"
                    raise LedgerError(self._where, what, next=next) from None
                else:
                    last = None
        if held:
            self._last[search_id] = rows[-1]["seq"]
            self._sent.pop(search_id, None)

    def _are_there(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether exactly these events are recorded. They are written together, so that one stands for all."""
        at, row = store.events.c, rows[-1]
        query = sa.select(at.time, at.type, at.payload).where(at.search_id == row["search_id"], at.seq == row["seq"])
        found = self._database.read(lambda connection: connection.execute(query).all())
        return [tuple(one) for one in found] == [(row["time"], row["type"], row["payload"])]

    def _are_numbers_taken(self, search_id: str, last: int) -> bool:
        return self._database.read(lambda connection: _last_seq(connection, search_id)) > last


def _last_seq(connection: Connection, search_id: str) -> int:
    at = store.events.c
    return connection.scalar(sa.select(sa.func.max(at.seq)).where(at.search_id == search_id)) or 0
