"""Judging a finished search on its test split, by paired intervals against every model that was scored on it."""

from typing import Any

from benchmarks.board.entries import Json
from evosearch import RunReport
from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.intervals import Interval, interval
from evosearch.evaluation.statistics.units import Groups
from evosearch.evaluation.types import Column
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.setup.loading import groups_of, metric_columns

Columns = dict[str, Column]  # task → the suite's metric, per item


def judged(report: RunReport) -> Json:
    """Scores on test, the finalist's leads, and what the gate decided.

    The finalist is the candidate that is best on validation, also if the gate put a simpler recipe in its place.
    """
    assert report.gate is not None
    finalist = report.gate.finalist
    with Ledger.open(report.ledger, read_only=True) as ledger:
        state = SearchState.from_events(ledger.events(report.search_id))
        names = [name for name, split in state.cards if split == "test"]
        columns = {name: metric_columns(ledger, report.search_id, state, name, "test") for name in names}
        groups = groups_of(ledger, state, finalist, "test")
    weights, chances = state.spec["suite"]["weights"], state.spec["suite"]["chances"]
    chances = {task: chances[task] for task in weights}
    zero = dict.fromkeys(weights, 0.0)
    return {
        "finalist": finalist,
        "winner": report.gate.winner,
        "promoted": report.gate.promoted,
        "reasons": list(report.gate.reasons),
        "documents": {task: len(column) for task, column in columns[finalist].items()},
        "scores": {split: _scores(state, split) for split in ("search", "validation", "test")},
        "metrics": {name: _metrics(own, weights, groups) for name, own in columns.items()},
        "leads": {
            name: {
                "score": _shown(bootstrap_difference(columns[finalist], own, weights, chances, groups)),
                "metric": _shown(bootstrap_difference(columns[finalist], own, weights, zero, groups)),
            }
            for name, own in columns.items()
            if name != finalist
        },
    }


def best_scale(result: Json) -> str | None:
    """Name of the best single scale on validation, the only one that is scored on test."""
    return next((name for name in result["leads"] if name.startswith("scale:")), None)


def _scores(state: SearchState, split: str) -> dict[str, float]:
    """Score of each model on a split; on `search` only of what was also validated."""
    validated = {name for name, on in state.cards if on == "validation"}
    found = {name: state.score(name, split) for name, on in state.cards if on == split and name in validated}
    return {name: round(score, 3) for name, score in found.items() if score is not None}


def _metrics(own: Columns, weights: dict[str, float], groups: Groups) -> dict[str, Any]:
    """Mean metric in % with its interval, and the metric of each task."""
    mean = interval(own, weights, None, groups)
    each = {task: round(100 * float(sum(column)) / len(column), 2) for task, column in own.items()}
    return {"mean": _shown(mean), "tasks": each}


def _shown(found: Interval) -> list[float]:
    return [round(found.value, 3), round(found.lower, 3), round(found.upper, 3)]
