"""Status of all searches in the runs folder, or in one ledger."""

import time
from dataclasses import dataclass
from typing import Any

from evosearch.errors import LedgerError
from evosearch.promotion.honest import TRAINED
from evosearch.redaction import hidden
from evosearch.reporting.openings import times_opened
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger, SearchInfo
from evosearch.search.records import CardSummary, is_candidate
from evosearch.search.sampling import BACKWARD
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged
from evosearch.spec.lookup import recorded_run_dirs
from evosearch.spec.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class SearchProgress:
    """Progress of a search and, while it runs, its speed."""

    stage: str | None = None  # baselines | search | validation | test | training
    done: int | None = None  # candidates
    total: int | None = None  # candidates of the budget; None if only time limits it
    per_minute: float | None = None  # candidates, in the current session
    seconds_left: float | None = None
    since: float | None = None  # start of the current or last session, in seconds since the epoch


@dataclass(frozen=True, kw_only=True)
class StatusRow(SearchProgress):
    """One search as `evosearch status` lists it, wherever it runs."""

    name: str
    search_id: str | None = None
    state: str
    problem: str | None = None
    failed: int | None = None  # candidates
    best_fitness: float | None = None
    promoted: str | None = None
    winner: str | None = None  # of a stage
    model: str | None = None  # title of what is promoted or won, such as `#17`; unknown for a search on a cluster
    test_openings: int | None = None  # unknown for a search on a cluster
    contamination_acknowledged: bool = False
    updated: float | None = None  # in seconds since the epoch; None if the ledger cannot be read


@dataclass(frozen=True, kw_only=True)
class LedgerRow(StatusRow):
    """One search as recorded in a ledger."""

    ledger: str  # URL
    held_by: str | None = None  # the process that runs it
    proposed: int | None = None  # candidates
    finished: int | None = None
    validated: int | None = None
    hours: float | None = None  # duration of all sessions


def statuses() -> list[LedgerRow]:
    """List all searches in the runs folder; an unreadable ledger or search becomes a row with its problem.

    A shared ledger may contain searches of other users: only those with a run directory here are listed.

    Raises:
        LedgerError: The runs folder cannot be read.
    """
    here: dict[str, list[RunDir]] = {}
    for run_dir in recorded_run_dirs():
        here.setdefault(run_dir.ledger, []).append(run_dir)  # wait for an unreachable server only once
    rows: list[LedgerRow] = []
    for url, sharing in here.items():
        try:
            rows += [row for row in of_ledger(url) if any(run_dir.owns(row.name) for run_dir in sharing)]
        except LedgerError as exc:
            rows += [
                LedgerRow(name=run_dir.name, state="unreadable", ledger=hidden(url), problem=str(exc))
                for run_dir in sharing
            ]
    return rows


def of_ledger(url: str) -> list[LedgerRow]:
    """List the searches of one ledger, latest first; one that is unreadable becomes a row with its problem.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    with Ledger.open(url, "--ledger", read_only=True) as ledger:
        return [_row_or_problem(ledger, info) for info in ledger.searches()]


def _row_or_problem(ledger: Ledger, info: SearchInfo) -> LedgerRow:
    """Summarize one search of a ledger; damage of any kind becomes its problem, and hides no other search."""
    url, problem = str(ledger.url), info.damage
    if problem is None:
        try:
            return row_of(ledger, info.search_id, url)
        except LedgerError as exc:
            problem = str(exc)
        except Exception as exc:  # a payload that is intact, and not what this version expects
            problem = f"{type(exc).__name__}: {exc}"
    name = info.name or info.search_id[:12]
    return LedgerRow(name=name, search_id=info.search_id, state="unreadable", ledger=url, problem=problem)


def row_of(ledger: Ledger, search_id: str, url: str) -> LedgerRow:
    """Summarize one search of a ledger."""
    events = ledger.events(search_id)
    state, holder = SearchState.from_events(events), ledger.holder(search_id)
    chosen = state.promoted or state.winner
    return LedgerRow(
        name=state.name,
        search_id=search_id,
        state="running" if holder else f"stopped: {state.stopped}" if state.stopped else "interrupted",
        held_by=holder,
        proposed=state.proposed,
        finished=len(state.finished),
        failed=len(state.failed),
        best_fitness=state.best(),
        validated=sum(split == "validation" and name not in state.reseeded for name, split in state.cards),
        promoted=state.promoted.candidate if state.promoted else None,
        winner=state.winner.candidate if state.winner else None,
        model=state.title(chosen.candidate) if chosen else None,
        test_openings=times_opened(ledger, state),
        contamination_acknowledged=contamination_acknowledged(state),
        hours=state.seconds_before / 3600.0,
        updated=state.last_time,
        ledger=url,
        **vars(progress_of(events, state, time.time(), bool(holder))),
    )


def progress_of(events: list[Event], state: SearchState, now: float, running: bool) -> SearchProgress:
    """Measure the progress of a search within its budget and, while it runs, its speed and the time left.

    Args:
        events: All events of the search.
        state: The same events, folded.
        now: Current time, in seconds since the epoch.
        running: Whether a process runs the search.
    """
    first = max((index for index, event in enumerate(events) if event.type == "started"), default=0)
    session = events[first:]
    budget = session[0].payload.get("budget", {}) if session else {}
    stage = "training" if _is_training(state) else _stage(session)
    total = _total(budget, state)
    rate = left = None
    if running and stage == "search":
        rate = _rate(session, now)
        left = _seconds_left(budget, state, rate, total, now)
    return SearchProgress(
        stage=stage,
        done=len(state.finished),
        total=total,
        per_minute=rate,
        seconds_left=left,
        since=session[0].time if session else None,
    )


def _total(budget: dict[str, Any], state: SearchState) -> int | None:
    """Return how many candidates the budget allows; for a budget of items a lower bound, as duplicates use no items."""
    totals = [budget["candidates"]] if budget.get("candidates") else []
    each = _items_of_one(state)
    if budget.get("items") and each:
        totals.append(int(budget["items"] / each))
    return min(totals, default=None)


def _items_of_one(state: SearchState) -> float:
    """Return the item evaluations of a candidate: of the first, or with gradients the mean of all; 0 before any."""
    if not state.gradients:
        return next((card.items for card in _scored(state)), 0)
    taken = [(1 + BACKWARD) * one.fitness.n for one in state.gradients.values()]
    taken += [card.items for card in state.samples.values()]
    return sum(taken) / len(taken)


def _scored(state: SearchState) -> list[CardSummary]:
    """Return the cards behind the reported observations."""
    full = [card for (name, split), card in state.cards.items() if is_candidate(name) and split == "search"]
    return list(state.samples.values()) or full


def _stage(session: list[Event]) -> str:
    """Return the stage of the last score: `baselines`, `search`, `validation` or `test`."""
    for event in reversed(session):
        if event.type == "asked":
            return "search"
        if event.type in ("scored", "failed"):
            split = str(event.payload["split"])
            return "baselines" if split == "search" and not is_candidate(event.payload["candidate"]) else split
    return "baselines"


def _is_training(state: SearchState) -> bool:
    """Whether everything is scored on test except the baseline to be fine-tuned."""
    name = state.latest(TRAINED)
    if name is None or not state.test_openings or (name, "search") in state.done:
        return False
    opened = state.test_openings[-1].candidates
    return name in opened and [one for one in opened if (one, "test") not in state.done] == [name]


def _rate(session: list[Event], now: float) -> float | None:
    """Return candidates per minute since the first proposal of this session."""
    results = ("scored", "differentiated", "failed")
    done = [e for e in session if e.type in results and is_candidate(e.payload["candidate"])]
    fresh = {event.payload["candidate"] for event in done if event.payload["split"] == "search"}
    began = next((event.time for event in session if event.type == "asked"), session[0].time)
    return 60.0 * len(fresh) / (now - began) if fresh and now > began else None


def _seconds_left(
    budget: dict[str, Any], state: SearchState, rate: float | None, total: int | None, now: float
) -> float | None:
    left = [] if total is None or not rate else [60.0 * max(0, total - len(state.finished)) / rate]
    if budget.get("hours"):
        used = state.seconds_before + max(0.0, now - state.last_time)  # another process: its clock is not ours
        left.append(max(0.0, 3600.0 * budget["hours"] - used))
    return min(left, default=None)
