"""Results of a finished search as one JSON document and Markdown tables.

    .venv/bin/python -m benchmarks.search_table NAME|SPEC

The first table has one row for each model that was scored on the test split: mean metric over the tasks in %, with
two-sided 95% intervals, on search, validation and test, and the winner's lead on test by the paired bootstrap.
Unlearning targets count wrong answers; guarded tasks are in points, 100 (m - c) / (1 - c). If all tasks are multiple
choice and all parents were scored, another row has the ensemble of the parents, which is not a merge and needs a
forward pass of each parent. The second table has the score of every finalist on each split and its generalization gap
between splits, and the same for base and parents, which were not selected on any split. All figures come from the
ledger, except for the number of test openings so far, which includes other searches.
"""

import argparse
import sys
from dataclasses import asdict
from typing import Any

from benchmarks._report import publish
from evosearch.errors import EvosearchError, InputError, SuiteError
from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.ensemble import ensemble_accuracy
from evosearch.evaluation.statistics.intervals import interval
from evosearch.evaluation.statistics.units import Groups
from evosearch.evaluation.types import SPLITS, Column
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.reporting.generalization import finalist_rows, unchosen_rows
from evosearch.reporting.openings import times_opened
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged, groups_of, metric_columns, read_search
from evosearch.spec.lookup import find

ENSEMBLE = "ensemble of the parents"
Metrics = dict[str, dict[str, Column]]  # split → task → the suite's metric, per item


def collect(search: str) -> dict[str, Any]:
    """Figures of a finished search.

    Args:
        search: Name or spec file of the search.

    Raises:
        EvosearchError: The search does not exist or the gate has not decided yet.
    """
    run_dir = find(search)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, state = read_search(ledger, run_dir)
        if state.gated is None:
            raise EvosearchError(f"{run_dir.name}: the gate has not decided yet")
        weights = state.spec["suite"]["weights"]
        names = [name for name in state.test_openings[-1].candidates if (name, "test") in state.cards]
        winner = state.gated.winner
        columns = {name: metrics(ledger, search_id, state, name) for name in names}
        groups = {split: groups_of(ledger, state, winner, split) for split in columns[winner]}
        together, reason = ensemble(ledger, search_id, state)
        chosen, unchosen = (
            [asdict(entry) for entry in rows_of(ledger, search_id, state)] for rows_of in (finalist_rows, unchosen_rows)
        )
        openings = {"openings": times_opened(ledger, state), "contamination": contamination_acknowledged(state)}
    if together:
        columns[ENSEMBLE] = together
    rows = [row(name, columns, winner, weights, groups) for name in sorted(columns, key=lambda entry: entry != winner)]
    cards = {name: state.cards[name, "test"] for name in names}
    for entry in rows:
        entry["guards"] = cards[entry["model"]].guards if entry["model"] in cards else {}
    targets = [task for task, score in cards[winner].tasks.items() if score.metric.startswith("1-")]
    counts = {"proposed": state.proposed, "failed": len(state.failed), **openings}
    found: dict[str, Any] = {
        "search": run_dir.name,
        "promoted": state.gated.promoted,
        "winner": winner,
        **counts,
        "rows": rows,
    }
    found |= {"finalists": chosen, "unchosen": unchosen, "unlearning_targets": targets}
    return found | ({"ensemble": f"none: {reason}"} if reason else {})


def row(
    name: str, columns: dict[str, Metrics], winner: str, weights: dict[str, float], groups: dict[str, Groups]
) -> dict[str, Any]:
    """Figures of one model: intervals by split and by task, and the winner's lead over it."""
    own = columns[name]
    found: dict[str, Any] = {"model": name, "tasks": {}}
    for split in SPLITS:
        if split in own:
            found[split] = vars(interval(own[split], weights, None, groups.get(split)))
    if "test" in own:
        for task in own["test"]:
            found["tasks"][task] = vars(interval({task: own["test"][task]}, {task: 1.0}, None, groups["test"]))
        if name != winner:
            zero = dict.fromkeys(weights, 0.0)
            both = (columns[winner]["test"], own["test"], weights, zero)
            found["lead"] = vars(bootstrap_difference(*both, groups["test"]))
    return found


def metrics(ledger: Ledger, search_id: str, state: SearchState, name: str) -> Metrics:
    """Per-item metrics of one model on every split where it was scored."""
    on = [split for split in SPLITS if (name, split) in state.cards]
    return {split: metric_columns(ledger, search_id, state, name, split) for split in on}


def ensemble(ledger: Ledger, search_id: str, state: SearchState) -> tuple[Metrics, str | None]:
    """The ensemble of the parents on every split where all of them were scored, or the reason why there is none."""
    parents = [name for name, baseline in state.baselines.items() if baseline.kind == "parent"]
    found: Metrics = {}
    for split in SPLITS:
        cards = [state.cards[name, split] for name in parents if (name, split) in state.cards]
        if not parents or len(cards) < len(parents) or any(card.sets != cards[0].sets for card in cards):
            continue
        tasks = cards[0].tasks
        if other := [f"{task} is measured by {entry.metric}" for task, entry in tasks.items() if entry.metric != "acc"]:
            return {}, f"{other[0]}, but the ensemble needs acc"
        members = [ledger.columns(search_id, name, split, cards[0].sets) for name in parents]
        try:
            found[split] = {task: ensemble_accuracy(task, [columns[task] for columns in members]) for task in tasks}
        except SuiteError as error:
            return {}, str(error)
    return found, None if found else "no split has scores of every parent on the same items"


def show(data: dict[str, Any]) -> str:
    """Markdown table of the models scored on test."""
    tasks, guarded = list(data["rows"][0]["tasks"]), list(data["rows"][0]["guards"])
    head = [
        "model",
        *SPLITS,
        *(f"{'not ' if task in data['unlearning_targets'] else ''}{task} (test)" for task in tasks),
    ]
    head += [*(f"{task}, guarded (test)" for task in guarded), "winner leads by (test)"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in data["rows"]:
        name = f"**{row['model']}** (winner)" if row["model"] == data["winner"] else row["model"]
        means = [cell(row.get(split)) for split in SPLITS]
        each = [f"{row['tasks'][task]['value']:.1f}" if task in row["tasks"] else "–" for task in tasks]
        each += [f"{row['guards'][task]:.1f}" if task in row["guards"] else "–" for task in guarded]
        lead = row.get("lead")
        shown = f"{lead['value']:+.1f} [{lead['lower']:+.1f}, {lead['upper']:+.1f}]" if lead else ""
        lines.append(f"| {' | '.join([name, *means, *each, shown])} |")
    return "\n".join(lines)


def show_gaps(data: dict[str, Any]) -> str:
    """Markdown table of scores by split, and of the changes between splits, which are negative for a loss."""
    head = ["finalist", *(f"score on {split}" for split in SPLITS), "search to validation", "validation to test"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in [*data["finalists"], *data["unchosen"]]:
        name = row["candidate"] + (" (not selected)" if row["rank"] is None else "")
        gaps = {f"{gap['from_split']} to {gap['to_split']}": gap for gap in row["gaps"]}
        scores = [cell(row["scores"].get(split)) for split in SPLITS]
        lines.append(f"| {' | '.join([name, *scores, *(change(gaps.get(step)) for step in head[4:])])} |")
    return "\n".join(lines)


def change(gap: dict[str, float] | None) -> str:
    """The change between two splits, and its interval."""
    return f"{-gap['value']:+.1f} [{-gap['upper']:+.1f}, {-gap['lower']:+.1f}]" if gap else "–"


def cell(mean: dict[str, float] | None) -> str:
    """A mean and its interval."""
    return f"{mean['value']:.1f} [{mean['lower']:.1f}, {mean['upper']:.1f}]" if mean else "–"


def main() -> int:
    """Print the results; return 2 if there is no such search."""
    parser = argparse.ArgumentParser("python -m benchmarks.search_table", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("search", metavar="NAME|SPEC", help="name of a finished search, or its spec file")
    try:
        found = collect(parser.parse_args().search)
    except EvosearchError as exc:
        print(exc, file=sys.stderr)
        return 2 if isinstance(exc, InputError) else 1
    notes = [opened(found["openings"]), *([CONTAMINATED] if found["contamination"] else [])]
    publish(found, show(found), show_gaps(found), *notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
