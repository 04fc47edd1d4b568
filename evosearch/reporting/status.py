"""Every search in the folder of runs, or in one ledger, at a glance."""

import time
from typing import Any

from evosearch.credentials import hidden
from evosearch.errors import LedgerError
from evosearch.reporting.openings import times_opened
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.records import CardSummary
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged
from evosearch.spec.lookup import recorded_run_dirs
from evosearch.spec.run_dir import RunDir


def statuses() -> list[dict[str, Any]]:
    """One row a search: name, state, progress, best, where. A ledger that cannot be read is a row that says so.

    Of a ledger elsewhere, which may have searches of others too, those that have a folder here.

    Raises:
        LedgerError: the folder of runs cannot be read.
    """
    here: dict[str, list[RunDir]] = {}
    for run_dir in recorded_run_dirs():
        here.setdefault(run_dir.ledger, []).append(run_dir)  # a server that is down is waited for once
    rows: list[dict[str, Any]] = []
    for url, sharing in here.items():
        try:
            rows += [row for row in of_ledger(url) if any(run_dir.owns(row["name"]) for run_dir in sharing)]
        except LedgerError as exc:
            problem = {"state": "unreadable", "ledger": hidden(url), "problem": str(exc)}
            rows += [{"name": run_dir.name} | problem for run_dir in sharing]
    return rows


def of_ledger(url: str) -> list[dict[str, Any]]:
    """The searches of one ledger, the latest first.

    Raises:
        LedgerError: it cannot be read.
    """
    with Ledger.open(url, "--ledger", read_only=True) as ledger:
        return [row_of(ledger, info.search_id, str(ledger.url)) for info in ledger.searches()]


def row_of(ledger: Ledger, search_id: str, url: str) -> dict[str, Any]:
    """One search as its ledger has it."""
    events = ledger.events(search_id)
    state = SearchState.from_events(events)
    holder = ledger.holder(search_id)
    row = _row(search_id, state, url, holder)
    return row | progress_of(events, state, time.time(), bool(holder)) | {"test_openings": times_opened(ledger, state)}


def _row(search_id: str, state: SearchState, url: str, holder: str | None) -> dict[str, Any]:
    splits = [split for _, split in state.cards]
    return {
        "name": state.name,
        "search_id": search_id,
        "state": "running" if holder else f"stopped: {state.stopped}" if state.stopped else "interrupted",
        "held_by": holder,
        "asked": state.proposed,
        "finished": len(state.finished),
        "failed": len(state.failed),
        "best_fitness": state.best(),
        "validated": splits.count("validation"),
        "promoted": state.promoted.candidate if state.promoted else None,
        "winner": state.winner.candidate if state.winner else None,  # of a stage that others build on
        "contamination_acknowledged": contamination_acknowledged(state),
        "hours": state.seconds_before / 3600.0,
        "updated": state.last_time,
        "ledger": url,
    }


def progress_of(events: list[Event], state: SearchState, now: float, running: bool) -> dict[str, Any]:
    """How far a search is of what its budget allows, and, while it runs, how fast in this session and how long yet.

    Returns:
        `stage`, `done` (candidates), `total` (None where only a clock ends it), `per_minute`, `seconds_left`, and
        `since`, when the present or last session began, in seconds since the epoch.
    """
    first = max((index for index, event in enumerate(events) if event.type == "started"), default=0)
    session = events[first:]
    budget = session[0].payload.get("budget", {}) if session else {}
    total = _total(budget, state)
    found: dict[str, Any] = {"stage": _stage(session), "done": len(state.finished), "total": total}
    found |= {"per_minute": None, "seconds_left": None, "since": session[0].time if session else None}
    if running and found["stage"] == "search":
        found["per_minute"] = _rate(session, now)
        found["seconds_left"] = _seconds_left(budget, state, found["per_minute"], total, now)
    return found


def _total(budget: dict[str, Any], state: SearchState) -> int | None:
    """Candidates, as far as the budget tells; of a budget of items, of which duplicates take none, at least so many."""
    totals = [budget["candidates"]] if budget.get("candidates") else []
    each = next((card.items for _, card in _scored(state)), 0)
    if budget.get("items") and each:
        totals.append(budget["items"] // each)
    return min(totals, default=None)


def _scored(state: SearchState) -> list[tuple[str, CardSummary]]:
    """The cards of candidates, as the optimizer was told of them."""
    parts = [(name, card) for (name, _), card in state.samples.items()]
    whole = [(name, card) for (name, split), card in state.cards.items() if name.isdigit() and split == "search"]
    return parts or whole


def _stage(session: list[Event]) -> str:
    """What the last score was for: `baselines`, `search`, `validation` or `test`."""
    for event in reversed(session):
        if event.type == "asked":
            return "search"
        if event.type in ("scored", "failed"):
            split = str(event.payload["split"])
            return "baselines" if split == "search" and not event.payload["candidate"].isdigit() else split
    return "baselines"


def _rate(session: list[Event], now: float) -> float | None:
    """Candidates a minute since this session's first was under way."""
    done = [e for e in session if e.type in ("scored", "failed") and e.payload["candidate"].isdigit()]
    fresh = {event.payload["candidate"] for event in done if event.payload["split"] == "search"}
    began = next((event.time for event in session if event.type == "asked"), session[0].time)
    return 60.0 * len(fresh) / (now - began) if fresh and now > began else None


def _seconds_left(
    budget: dict[str, Any], state: SearchState, rate: float | None, total: int | None, now: float
) -> float | None:
    left = [] if total is None or not rate else [60.0 * max(0, total - len(state.finished)) / rate]
    if budget.get("hours"):
        used = state.seconds_before + max(0.0, now - state.last_time)
        left.append(max(0.0, 3600.0 * budget["hours"] - used))
    return min(left, default=None)
