"""Recovery of a damaged SQLite ledger: a new ledger with everything that is intact and can be continued from.

Rows are read from single pages and recognized by their checksums, so a damaged index or a lost page costs only the rows
on it. Of each search, the events up to the first gap are kept, if the item scores that they announce are there as well;
a resumed search proposes and scores the rest again. The damaged file is not changed.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from evosearch.search.ledger import store
from evosearch.search.ledger.consistency import Inventory, claims, usable
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.rows import DamagedRowError, check, column_of, event_of, item_set_of
from evosearch.search.ledger.sqlite_pages import Value, rows_of

Row = dict[str, Any]
TABLES = (store.events, store.scores, store.test_openings, store.item_sets)


@dataclass(frozen=True)
class SalvagedSearch:
    """One search of a damaged ledger.

    Attributes:
        search_id: The search.
        name: Its name; empty if its first event is lost.
        kept: Number of events in the new ledger, from the first on.
        beyond: Number of intact events after those, which cannot be continued from.
        last: Number of the last intact event.
    """

    search_id: str
    name: str
    kept: int
    beyond: int
    last: int


@dataclass
class Salvage:
    """The intact rows of a damaged file."""

    events: dict[str, dict[int, Row]] = field(default_factory=lambda: defaultdict(dict))  # search → number → row
    scores: dict[tuple[str, ...], Row] = field(default_factory=dict)  # by primary key
    item_sets: dict[str, Row] = field(default_factory=dict)  # by digest
    openings: dict[str, Row] = field(default_factory=dict)  # by checksum

    @classmethod
    def read(cls, database: Path) -> "Salvage":
        """Read a damaged file.

        Raises:
            OSError: It cannot be read.
        """
        found = cls()
        for values in rows_of(database):
            for table in TABLES:
                with suppress(DamagedRowError, UnicodeDecodeError, TypeError, ValueError):
                    found._add(table, values)
        return found

    def _add(self, table: sa.Table, values: tuple[Value, ...]) -> None:
        """Add a row if it is an intact one of this table.

        Raises:
            DamagedRowError, UnicodeDecodeError, TypeError, ValueError: It is not.
        """
        if len(values) != len(table.columns):
            return
        row = {column.name: _typed(column, value) for column, value in zip(table.columns, values, strict=True)}
        if table is store.events:
            event_of(row)
            self.events[row["search_id"]][row["seq"]] = row
        elif table is store.scores:
            column_of(row)
            self.scores[tuple(str(row[column.name]) for column in table.primary_key)] = row
        elif table is store.item_sets:
            item_set_of(row)
            self.item_sets[row["digest"]] = row
        else:
            check(row, "a test opening")
            self.openings[row["checksum"]] = {key: value for key, value in row.items() if key != "id"}

    def write(self, connection: sa.Connection) -> list[SalvagedSearch]:
        """Write what can be continued from into the tables of a new ledger."""
        inventory = Inventory(set(self.item_sets))
        for row in self.scores.values():
            inventory.add(row)
        found, kept = [], []
        claimed: set[tuple[str, ...]] = set()
        for search_id, by_number in self.events.items():
            rows = [by_number[number] for number in sorted(by_number)]
            events = [event_of(row) for row in rows]
            count = usable(search_id, rows, events, inventory)
            kept += rows[:count]
            claimed |= {(search_id, *scored) for event in events[:count] for scored in claims(event)}
            found.append(SalvagedSearch(search_id, _name(events), count, len(rows) - count, rows[-1]["seq"]))
        scores = [row for key, row in self.scores.items() if key[:4] in claimed]
        for table, rows in (
            (store.item_sets, list(self.item_sets.values())),
            (store.events, kept),
            (store.scores, scores),
            (store.test_openings, list(self.openings.values())),
        ):
            if rows:
                connection.execute(sa.insert(table), rows)
        return sorted(found, key=lambda search: search.name)


def _typed(column: "sa.Column[Any]", value: Value) -> Any:
    """Return a stored value as its column's type; SQLite stores round numbers of any column as integers."""
    if isinstance(column.type, sa.Text) and isinstance(value, bytes):
        return value.decode()
    if isinstance(column.type, sa.Double) and isinstance(value, int):
        return float(value)
    return value


def _name(events: list[Event]) -> str:
    first: Iterator[Event] = (event for event in events[:1] if event.seq == 1 and event.type == "started")
    return next((str(event.payload.get("name", "")) for event in first), "")
