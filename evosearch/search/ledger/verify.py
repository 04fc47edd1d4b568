"""Verification of a ledger: every checksum, and whether everything that belongs together is there.

SQLite's own check of the file comes first. Then all rows are read in one snapshot, so that a ledger can be verified
while a search writes to it. The optimizers are not replayed here, which needs the models (see `service.ledger_upkeep`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from evosearch.errors import LedgerError
from evosearch.search.ledger import store
from evosearch.search.ledger.consistency import Inventory, breaks
from evosearch.search.ledger.database_errors import reason_of
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.rows import DamagedRowError, check, column_of, event_of, item_set_of
from evosearch.search.state import SearchState

Row = dict[str, Any]
Result = TypeVar("Result")
ROWS = 256  # rows in memory at a time
PAGES_SHOWN = 5  # problems that SQLite lists


@dataclass(frozen=True)
class VerifiedSearch:
    """One search of a verified ledger."""

    search_id: str
    name: str  # empty if its first event is damaged
    events: int
    columns: int  # of item scores
    problems: tuple[str, ...] = ()


@dataclass
class Verified:
    """What a ledger contains, and what is wrong with it."""

    searches: list[VerifiedSearch] = field(default_factory=list)
    item_sets: int = 0
    test_openings: int = 0
    problems: list[str] = field(default_factory=list)  # that belong to no search

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not any(search.problems for search in self.searches)


def verify(connection: Connection) -> Verified:
    """Verify all rows of a ledger.

    Args:
        connection: A connection whose queries see one snapshot.
    """
    found = Verified()
    if connection.dialect.name == "sqlite":
        pages = connection.exec_driver_sql(f"PRAGMA integrity_check({PAGES_SHOWN})").scalars().all()
        found.problems += [f"SQLite: {text}" for text in pages if text != "ok"]
    try:
        _verify_rows(connection, found)
    except sa.exc.DatabaseError as exc:
        if not found.problems:
            raise
        found.problems.append(f"the rest cannot be read: {reason_of(exc)}")
    return found


def _verify_rows(connection: Connection, found: Verified) -> None:
    inventory, damages = Inventory(), found.problems
    for row in _rows(connection, sa.select(store.item_sets)):
        inventory.item_sets.add(row["digest"])
        found.item_sets += 1
        _attempt(item_set_of, row, damages)
    counted: dict[str, int] = {}
    for row in _rows(connection, sa.select(store.scores)):
        inventory.add(row)
        counted[row["search_id"]] = counted.get(row["search_id"], 0) + 1
        _attempt(column_of, row, damages)
    for row in _rows(connection, sa.select(store.test_openings)):
        found.test_openings += 1
        _attempt(_opening, row, damages)
    ids = connection.scalars(sa.select(store.events.c.search_id).distinct()).all()
    for search_id in ids:
        found.searches.append(_search(connection, search_id, inventory, counted.pop(search_id, 0)))
    found.problems += [f"{count} columns of search {one[:12]}, which has no events" for one, count in counted.items()]


def _search(connection: Connection, search_id: str, inventory: Inventory, columns: int) -> VerifiedSearch:
    at = store.events.c
    rows, events = [], []
    problems: list[str] = []
    for row in _rows(connection, sa.select(store.events).where(at.search_id == search_id).order_by(at.seq)):
        rows.append({"seq": row["seq"], "more": row["more"]})
        event = _attempt(event_of, row, problems)
        events += [event] if event is not None else []
    problems += breaks(rows)
    problems += [text for event in events if (text := inventory.lacking(search_id, event)) is not None]
    if not problems:  # of an incomplete record, these would be consequences
        unclaimed = _unclaimed(inventory, search_id, events)
        problems += [f"{one} on {split} has item scores and no result" for one, split in unclaimed]
        problems += _folded(events)
    name = next((str(event.payload.get("name", "")) for event in events[:1] if event.type == "started"), "")
    return VerifiedSearch(search_id, name, len(rows), columns, tuple(problems))


def _unclaimed(inventory: Inventory, search_id: str, events: Iterable[Event]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one, split) for one, split, _ in inventory.unclaimed(search_id, events)))


def _folded(events: Iterable[Event]) -> list[str]:
    """Return why the events cannot be read as a search; empty if they can."""
    try:
        SearchState.from_events(events)
    except LedgerError as exc:
        return [exc.what]
    return []


def _opening(row: Row) -> None:
    check(row, f"test opening {row['id']}")


def _attempt(decode: Callable[[Row], Result], row: Row, problems: list[str]) -> Result | None:
    try:
        return decode(row)
    except DamagedRowError as exc:
        problems.append(str(exc))
        return None


def _rows(connection: Connection, query: "sa.Select[Any]") -> Iterator[Row]:
    with connection.execution_options(yield_per=ROWS).execute(query) as result:
        for row in result:
            yield dict(row._mapping)
