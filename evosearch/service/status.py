"""Every search in the folder of runs, at a glance."""

from typing import Any

from evosearch.errors import LedgerError
from evosearch.search.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.service.openings import times_opened
from evosearch.service.paths import runs_folder
from evosearch.service.recorded import contamination_acknowledged


def statuses() -> list[dict[str, Any]]:
    """One row a search: name, state, progress, best, where. A ledger that cannot be read is a row that says so."""
    rows: list[dict[str, Any]] = []
    for database in sorted(runs_folder().glob("*/ledger.db")):
        url = f"sqlite:///{database}"
        try:
            with Ledger.open(url, read_only=True) as ledger:
                for search in ledger.searches():
                    state = SearchState.from_events(ledger.events(search.search_id))
                    row = _row(search.search_id, state, url, ledger.holder(search.search_id))
                    rows.append(row | {"test_openings": times_opened(ledger, state)})
        except LedgerError as exc:
            rows.append({"name": database.parent.name, "state": "unreadable", "ledger": url, "problem": str(exc)})
    return rows


def _row(search_id: str, state: SearchState, url: str, holder: str | None) -> dict[str, Any]:
    splits = [split for _, split in state.cards]
    return {
        "name": state.name,
        "search_id": search_id,
        "state": "running" if holder else f"stopped: {state.stopped}" if state.stopped else "interrupted",
        "held_by": holder,
        "asked": state.asked_count,
        "finished": len(state.finished),
        "failed": len(state.failed),
        "best_fitness": state.best(),
        "validated": splits.count("validation"),
        "promoted": state.promoted["candidate"] if state.promoted else None,
        "winner": state.winner["candidate"] if state.winner else None,  # of a stage that others build on
        "contamination_acknowledged": contamination_acknowledged(state),
        "hours": state.seconds_before / 3600.0,
        "updated": state.last_time,
        "ledger": url,
    }
