"""Consistency of a ledger: consecutive events, complete transactions, results with their item scores."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evosearch.search.ledger.events import Event
from evosearch.search.ledger.rows import Row

Scored = tuple[str, str, str]  # candidate, split, item-set digest


@dataclass
class Inventory:
    """Item sets and columns of scores in a ledger, by name."""

    item_sets: set[str] = field(default_factory=set)  # digests
    # Search → what was scored → its columns
    columns: dict[str, dict[Scored, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def add(self, row: Row) -> None:
        """Add the row of a column."""
        self.columns[row["search_id"]][row["candidate"], row["split"], row["digest"]].add(row["column"])

    def lacking(self, search_id: str, event: Event) -> str | None:
        """Return what an event refers to and the ledger does not have; None if it is complete."""
        if event.type != "scored":
            return None
        candidate, split = event.payload["candidate"], event.payload["split"]
        for task, digest in event.payload["sets"].items():
            if digest not in self.item_sets:
                return f"the documents of {task} that {candidate} was scored on are missing"
            there, announced = self.columns[search_id].get((candidate, split, digest), ()), event.payload["columns"]
            if len(there) != announced[task]:
                return f"item scores of {candidate} on {split} are missing: {len(there)} of {announced[task]} columns"
        return None

    def unclaimed(self, search_id: str, events: Iterable[Event]) -> list[Scored]:
        """Return what has item scores without a result."""
        results = {scored for event in events for scored in claims(event)}
        return [scored for scored in self.columns[search_id] if scored not in results]


def claims(event: Event) -> list[Scored]:
    """Return what an event is the result of."""
    if event.type != "scored":
        return []
    payload: Mapping[str, Any] = event.payload
    return [(payload["candidate"], payload["split"], digest) for digest in payload["sets"].values()]


def breaks(rows: Sequence[Row]) -> list[str]:
    """Return gaps in the numbers of one search's events, in order, and transactions that are not complete."""
    found = []
    for index, row in enumerate(rows):
        before = rows[index - 1] if index else None
        if row["seq"] != (before["seq"] + 1 if before else 1):
            found.append(f"events {before['seq'] + 1 if before else 1} to {row['seq'] - 1} are missing")
        elif before is not None and before["more"] and row["more"] != before["more"] - 1:
            found.append(f"event {row['seq']} does not continue the transaction of the one before")
    if rows and rows[-1]["more"]:
        found.append(f"{rows[-1]['more']} events after the last one are missing")
    return found


def usable(search_id: str, rows: Sequence[Row], events: Sequence[Event], inventory: Inventory) -> int:
    """Return how many of a search's first events can be continued from.

    They have no gap, their results are complete, and the last one ends a transaction.

    Args:
        search_id: The search.
        rows: Rows of its events, in order.
        events: The same, decoded.
        inventory: Everything that is scored.
    """
    kept = 0
    for index, (row, event) in enumerate(zip(rows, events, strict=True)):
        if row["seq"] != index + 1 or inventory.lacking(search_id, event) is not None:
            break
        if row["more"] == 0:
            kept = index + 1
    return kept
