"""Candidates and baselines by score, read from the ledger alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evosearch.errors import SpecError
from evosearch.reporting.openings import times_opened
from evosearch.reporting.shrinkage import finalist_rows, unchosen_rows
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.pareto import ordered, pareto_set
from evosearch.search.records import CardSummary, Reported
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged, read_search
from evosearch.spec.run_dir import RunDir
from evosearch.tracking.pareto_page import pareto_page


@dataclass(frozen=True)
class Board:
    """A leaderboard, and what a reader has to know before taking its figures for what they are."""

    rows: list[dict[str, Any]]
    finalists: list[dict[str, Any]]  # see `shrinkage`
    unchosen: list[dict[str, Any]]
    test_openings: int  # by all searches, up to now
    contamination_acknowledged: bool


def leaderboard(run_dir: RunDir, with_runs: bool = False) -> list[dict[str, Any]]:
    """The rows of `board`."""
    return board(run_dir, with_runs).rows


def board(run_dir: RunDir, with_runs: bool = False) -> Board:
    """Rows by score on the search split, best first: what breaks no guard, what breaks one, what failed.

    Where candidates were scored on a minibatch of the split, those scored on all of it come before the others: `sample` is
    None, else the number of items behind score and fitness. `violations` holds the points lost beyond each guard,
    `falls` of a finalist how far its score fell from each split to the next. A test score says how often the test set
    has been opened, and whether the suite acknowledges contamination. Of a search with several objectives, `objectives`
    are what the optimizer was told, and `pareto` whether no other candidate is better in all of them; None elsewhere.

    Args:
        with_runs: add each row's MLflow run id, where the tracking store answers.
    """
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, state = read_search(ledger, run_dir)
        found = board_of(ledger, search_id, state)
    runs = _run_ids(run_dir, search_id) if with_runs else {}
    for row in found.rows:
        row["run_id"] = runs.get(row["candidate"])
    return found


def board_of(ledger: Ledger, search_id: str, state: SearchState) -> Board:
    """The leaderboard of one search's folded events, with what its ledger holds of every item."""
    rows, finalists = leaderboard_rows(state), finalist_rows(ledger, search_id, state)
    unchosen = unchosen_rows(ledger, search_id, state) if finalists else []
    falls = {row["candidate"]: row["falls"] for row in [*finalists, *unchosen]}
    opened, acknowledged = times_opened(ledger, state), contamination_acknowledged(state)
    for row in rows:
        row["falls"] = falls.get(row["candidate"], [])
        if "test" in row["splits"]:
            row["splits"]["test"] |= {"openings": opened, "contamination_acknowledged": acknowledged}
    return Board(rows, finalists, unchosen, opened, acknowledged)


def leaderboard_rows(state: SearchState) -> list[dict[str, Any]]:
    """The rows of one search's folded events."""
    rows = [_row(state, name) for name in [*state.baselines, *state.candidates] if not _skipped(state, name)]
    rows.sort(key=_rank)
    named = objectives_of(state)
    front = set(pareto_set(state.reported.values())) if named else set()
    for row in rows:
        told = state.reported.get(row["candidate"]) if named else None
        row["objectives"] = _objectives(named, told) if told else {}
        row["pareto"] = row["candidate"] in front if told else None
    return [{"rank": rank, **row} for rank, row in enumerate(rows, start=1)]


def pareto_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The Pareto set, each recipe once, the best at the first objective first."""
    found = [row for row in rows if row["pareto"] and not str(row["state"]).startswith("duplicate")]
    members = {row["candidate"]: [one["value"] for one in row["objectives"].values()] for row in found}
    by_name = {row["candidate"]: row for row in found}
    kept = ("candidate", "recipe_id", "score", "fitness", "objectives")
    return [{key: by_name[name][key] for key in kept} for name in ordered(members)]


def write_pareto_page(name: str, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The Pareto set of a search as one HTML file.

    Raises:
        SpecError: the search has one objective, or the file cannot be written.
    """
    told = [row for row in rows if row["pareto"] is not None and row["objectives"]]
    if not told:
        what = f"'{name}' has no Pareto set: it has one objective, or no candidate was told of yet"
        raise SpecError("--page", what, next="Name several `objectives` in the spec")
    shown = {row["candidate"] for row in pareto_rows(rows)}
    first = [row for one in pareto_rows(rows) for row in told if row["candidate"] == one["candidate"]]
    others = [row for row in told if row["candidate"] not in shown and not row["pareto"]]
    try:
        path.write_text(pareto_page(name, list(told[0]["objectives"]), [*first, *others]), encoding="utf-8")
    except OSError as error:
        raise SpecError("--page", f"cannot write {path}: {error.strerror}", next="Name another file") from None


def objectives_of(state: SearchState) -> tuple[str, ...]:
    """What the search's optimizer is told of, where there are several things."""
    return tuple(state.spec.get("objectives") or ())


def _objectives(named: Sequence[str], told: Reported) -> dict[str, dict[str, Any]]:
    return dict(zip(named, map(asdict, told.objectives), strict=False))


def _rank(row: Mapping[str, Any]) -> tuple[bool, float, bool, float]:
    return row["score"] is None, sum(row["violations"].values()), row["sample"] is not None, -(row["score"] or 0.0)


def _row(state: SearchState, name: str) -> dict[str, Any]:
    original = state.original(name)
    cards = {split: card for (candidate, split), card in state.cards.items() if candidate == original}
    sample = None if "search" in cards else _sample(state, name, original)
    search = sample or cards.get("search")
    return {
        "candidate": name,
        "recipe_id": state.recipe_ids[name],
        "kind": state.kind(name),
        "score": search.score if search else None,
        "fitness": search.fitness.value if search else None,
        "sample": sample.items if sample else None,
        "violations": _violations(state, name, original),
        "splits": {split: _split(card) for split, card in sorted(cards.items())},
        "run_id": None,
        "state": _state(state, name, original, search is not None),
    }


def _sample(state: SearchState, name: str, original: str) -> CardSummary | None:
    minibatch = state.candidates[name].minibatch if name in state.candidates else None
    return None if minibatch is None else state.samples.get((original, minibatch))


def _violations(state: SearchState, name: str, original: str) -> dict[str, float]:
    """Guarded task → points lost beyond what its guard allows; those that keep to it are left out."""
    found = state.violations(original)
    if not found:
        reported = state.reported.get(name)  # on the minibatch that it was scored on
        found = dict(zip(state.limits, reported.violations if reported else (), strict=False))
    return {task: amount for task, amount in found.items() if amount > 0}


def _split(card: CardSummary) -> dict[str, Any]:
    tasks = {name: asdict(task) for name, task in card.tasks.items()}
    return {"score": card.score, "fitness": card.fitness.value, "tasks": tasks}


def _state(state: SearchState, name: str, original: str, scored: bool) -> str:
    if state.promoted is not None and state.promoted.candidate == name:
        return "promoted"
    if state.winner is not None and state.winner.candidate == name:
        return "winner"
    if scored:
        return "scored" if name == original else f"duplicate of {original}"
    return "failed" if state.has_failed(original) else "asked"


def _skipped(state: SearchState, name: str) -> bool:
    return name in state.baselines and state.baselines[name].recipe is None


def _run_ids(run_dir: RunDir, search_id: str) -> dict[str, str]:
    from evosearch.errors import TrackingError
    from evosearch.tracking.mlflow import run_ids

    try:
        return run_ids(run_dir.tracking, search_id)
    except TrackingError:  # the tracking store may be away; the ledger is the record
        return {}
