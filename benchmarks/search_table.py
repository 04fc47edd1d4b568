#!/usr/bin/env python3
"""What a finished search came to, as one JSON document and a table for a README.

    scripts/bench/search_table NAME|SPEC

One row for each model that the test split was opened for: mean metric over the tasks in %, with two-sided 95%
intervals, on search, validation and test; and the winner's lead over it on test, by the paired bootstrap. A task that
is to be forgotten is shown by its wrong answers, a guarded one by its points, 100 (m - c) / (1 - c). One more row,
where the tasks are multiple choice and all parents were scored: the ensemble of the parents, which is no merge and
costs a run of each. A second table holds every finalist's score on each split and how far it fell from one to the next,
and the same of base and parents, which no split chose. All is read from the ledger, save how often the test set was
opened until now, which other searches add to.
"""

import json
import sys
from typing import Any

from evosearch.errors import EvosearchError, SuiteError
from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.ensemble import ensemble_accuracy
from evosearch.evaluation.statistics.intervals import interval
from evosearch.evaluation.statistics.units import Groups
from evosearch.evaluation.types import SPLITS, Column
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.reporting.openings import times_opened
from evosearch.reporting.shrinkage import finalist_rows, unchosen_rows
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged, groups_of, metric_columns, read_search
from evosearch.spec.run_dir import find

ENSEMBLE = "ensemble of the parents"
Metrics = dict[str, dict[str, Column]]  # split → task → the suite's metric of each item


def table(search: str) -> dict[str, Any]:
    places = find(search)
    with Ledger.open(places.ledger, read_only=True) as ledger:
        search_id, state = read_search(ledger, places)
        if state.gated is None:
            raise EvosearchError(f"{places.name}: the gate has not decided yet")
        weights = state.spec["suite"]["weights"]
        names = [name for name in state.test_openings[-1]["candidates"] if (name, "test") in state.cards]
        winner = state.gated["winner"]
        columns = {name: metrics(ledger, search_id, state, name) for name in names}
        groups = {split: groups_of(ledger, state, winner, split) for split in columns[winner]}
        together, without = ensemble(ledger, search_id, state)
        chosen, unchosen = (rows(ledger, search_id, state) for rows in (finalist_rows, unchosen_rows))
        openings = {"openings": times_opened(ledger, state), "contamination": contamination_acknowledged(state)}
    if together:
        columns[ENSEMBLE] = together
    rows = [row(name, columns, winner, weights, groups) for name in sorted(columns, key=lambda entry: entry != winner)]
    cards = {name: state.cards[name, "test"] for name in names}
    for entry in rows:
        entry["guards"] = cards.get(entry["model"], {}).get("guards", {})
    forgotten = [task for task, score in cards[winner]["tasks"].items() if score["metric"].startswith("1-")]
    asked = {"asked": state.asked_count, "failed": len(state.failed), **openings}
    found = {"search": places.name, "promoted": state.gated["promoted"], "winner": winner, **asked, "rows": rows}
    found |= {"finalists": chosen, "unchosen": unchosen, "forgotten": forgotten}
    return found | ({"ensemble": f"none: {without}"} if without else {})


def row(
    name: str, columns: dict[str, Metrics], winner: str, weights: dict[str, float], groups: dict[str, Groups]
) -> dict[str, Any]:
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
    on = [split for split in SPLITS if (name, split) in state.cards]
    return {split: metric_columns(ledger, search_id, state, name, split) for split in on}


def ensemble(ledger: Ledger, search_id: str, state: SearchState) -> tuple[Metrics, str | None]:
    """The parents' ensemble on every split that all of them were scored on; where there is none, the reason."""
    parents = [name for name, baseline in state.baselines.items() if baseline["kind"] == "parent"]
    found: Metrics = {}
    for split in SPLITS:
        cards = [state.cards.get((name, split)) for name in parents]
        if not parents or None in cards or any(card["sets"] != cards[0]["sets"] for card in cards):
            continue
        tasks = cards[0]["tasks"]
        if other := [
            f"{task} is measured by {entry['metric']}" for task, entry in tasks.items() if entry["metric"] != "acc"
        ]:
            return {}, f"{other[0]}, an ensemble by acc"
        members = [ledger.columns(search_id, name, split, cards[0]["sets"]) for name in parents]
        try:
            found[split] = {task: ensemble_accuracy(task, [columns[task] for columns in members]) for task in tasks}
        except SuiteError as error:
            return {}, str(error)
    return found, None if found else "no split has scores of every parent on the same items"


def show(data: dict[str, Any]) -> str:
    tasks, guarded = list(data["rows"][0]["tasks"]), list(data["rows"][0]["guards"])
    head = ["model", *SPLITS, *(f"{'not ' if task in data['forgotten'] else ''}{task} (test)" for task in tasks)]
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


def show_falls(data: dict[str, Any]) -> str:
    """Every finalist's score by split, and what it gained (with a minus, lost) from one to the next."""
    head = ["finalist", *(f"score on {split}" for split in SPLITS), "search to validation", "validation to test"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in [*data["finalists"], *data["unchosen"]]:
        name = row["candidate"] + ("" if "rank" in row else " (not chosen)")
        falls = {f"{fall['from']} to {fall['to']}": fall for fall in row["falls"]}
        scores = [cell(row["scores"].get(split)) for split in SPLITS]
        lines.append(f"| {' | '.join([name, *scores, *(change(falls.get(step)) for step in head[4:])])} |")
    return "\n".join(lines)


def change(fall: dict[str, float] | None) -> str:
    return f"{-fall['value']:+.1f} [{-fall['upper']:+.1f}, {-fall['lower']:+.1f}]" if fall else "–"


def cell(mean: dict[str, float] | None) -> str:
    return f"{mean['value']:.1f} [{mean['lower']:.1f}, {mean['upper']:.1f}]" if mean else "–"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        found = table(sys.argv[1])
    except EvosearchError as exc:
        sys.exit(str(exc))
    print(json.dumps(found, indent=2))
    print(show(found), show_falls(found), opened(found["openings"]), sep="\n\n")
    if found["contamination"]:
        print(CONTAMINATED)
