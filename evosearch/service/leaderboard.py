"""Candidates and controls by score, read from the ledger alone."""

from collections.abc import Mapping
from typing import Any

from evosearch.search.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.service.paths import Places
from evosearch.service.recorded import read_search


def leaderboard(places: Places, with_runs: bool = False) -> list[dict[str, Any]]:
    """Rows by score on the search split, best first; failed ones last.

    Args:
        with_runs: add each row's MLflow run id, where the tracking store answers.
    """
    with Ledger.open(places.ledger, read_only=True) as ledger:
        search_id, state = read_search(ledger, places)
    return leaderboard_rows(state, _run_ids(places, search_id) if with_runs else {})


def leaderboard_rows(state: SearchState, runs: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The rows of one search's folded events.

    Args:
        runs: candidate → MLflow run id.
    """
    runs = runs or {}
    rows = [_row(state, name, runs) for name in [*state.controls, *state.asked] if not _skipped(state, name)]
    rows.sort(key=lambda row: (row["score"] is None, -(row["score"] or 0.0)))
    return [{"rank": rank, **row} for rank, row in enumerate(rows, start=1)]


def _row(state: SearchState, name: str, runs: Mapping[str, str]) -> dict[str, Any]:
    original = (state.asked.get(name) or {}).get("duplicate_of") or name
    cards = {split: card for (candidate, split), card in state.cards.items() if candidate == original}
    search = cards.get("search")
    return {
        "candidate": name,
        "recipe_id": state.recipe_ids[name],
        "kind": state.control_kinds.get(name, "candidate"),
        "score": search["score"] if search else None,
        "fitness": search["fitness"]["value"] if search else None,
        "splits": {split: _split(card) for split, card in sorted(cards.items())},
        "run_id": runs.get(name),
        "state": _state(state, name, original, search is not None),
    }


def _split(card: dict[str, Any]) -> dict[str, Any]:
    tasks = {
        name: {key: task[key] for key in ("metric", "value", "stderr", "n")} for name, task in card["tasks"].items()
    }
    return {"score": card["score"], "fitness": card["fitness"]["value"], "tasks": tasks}


def _state(state: SearchState, name: str, original: str, scored: bool) -> str:
    if state.promoted is not None and state.promoted["candidate"] == name:
        return "promoted"
    if scored:
        return "scored" if name == original else f"duplicate of {original}"
    return "failed" if state.has_failed(original) else "asked"


def _skipped(state: SearchState, name: str) -> bool:
    return bool(state.controls.get(name, {}).get("skipped"))


def _run_ids(places: Places, search_id: str) -> dict[str, str]:
    from evosearch.errors import TrackingError
    from evosearch.tracking.mlflow import run_ids

    try:
        return run_ids(places.tracking, search_id)
    except TrackingError:  # the tracking store may be away; the ledger is the record
        return {}
