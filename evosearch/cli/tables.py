"""The tables that commands print, as rich tables; numbers come ready from the services."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from evosearch.service.run import RunReport


def leaderboard_table(rows: Sequence[dict[str, Any]], title: str = "Leaderboard (score on the search split)") -> Table:
    """Rank, candidate, scores by split, fitness, task metrics on `search`."""
    tasks = sorted({task for row in rows for task in row["splits"].get("search", {}).get("tasks", {})})
    table = Table(title=title, title_justify="left")
    for heading in ("rank", "candidate", "score", "fitness", *tasks, "validation", "test", "state"):
        table.add_column(heading, justify="left" if heading in ("candidate", "state") else "right")
    for row in rows:
        search = row["splits"].get("search", {}).get("tasks", {})
        values = [_number(search.get(task, {}).get("value"), 3) for task in tasks]
        others = [_number(row["splits"].get(split, {}).get("score"), 1) for split in ("validation", "test")]
        fixed = [str(row["rank"]), row["candidate"], _number(row["score"], 1), _number(row["fitness"], 4)]
        table.add_row(*fixed, *values, *others, row["state"])
    return table


def status_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Searches", title_justify="left")
    for heading in ("name", "state", "finished", "failed", "best fitness", "promoted", "updated"):
        table.add_column(heading, justify="left" if heading in ("name", "state", "promoted") else "right")
    for row in rows:
        if "asked" not in row:
            table.add_row(row["name"], row["state"], "", "", "", "", row["problem"])
            continue
        updated = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["updated"]))
        counts = (f"{row['finished']}/{row['asked']}", str(row["failed"]), _number(row["best_fitness"], 4))
        table.add_row(row["name"], row["state"], *counts, row["promoted"] or "-", updated)
    return table


def score_table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['suite']}, {result['split']}: score {result['score']:.2f}", title_justify="left")
    for heading in ("task", "metric", "value", "stderr", "items"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for name, task in result["tasks"].items():
        table.add_row(name, task["metric"], f"{task['value']:.4f}", f"{task['stderr']:.4f}", str(task["n"]))
    return table


def test_table(report: "RunReport") -> Table:
    """The winner and what it was held against, on questions the search never saw."""
    table = Table(title="Test split: mean metric in %, and the winner's lead, with 95% intervals", title_justify="left")
    tasks = list(report.test[0]["tasks"]) if report.test else []
    for heading in ("model", *tasks, "mean", "score", "winner leads by (score points)"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in report.test:
        values = [_number(100 * row["tasks"][task]["value"], 1) for task in tasks]
        mean = f"{row['mean']:.1f} [{row['mean_low']:.1f}, {row['mean_high']:.1f}]"
        lead = row.get("lead")
        shown = f"{lead['value']:+.1f} [{lead['lower']:+.1f}, {lead['upper']:+.1f}]" if lead else ""
        table.add_row(row["label"], *values, mean, f"{row['score']:.1f}", shown)
    return table


def show_run(console: Console, report: "RunReport") -> None:
    """Leaderboard, the gate's decision, where the recipe lies, and how to see it all in MLflow."""
    console.print(leaderboard_table(report.leaderboard[:12]))
    if report.test:
        console.print(test_table(report))
    for reason in report.gate["reasons"] if report.gate else ():
        console.print(reason, highlight=False)
    if report.gate:
        console.print(f"This test set has been opened {report.test_openings} time(s) on record here.", style="dim")
    for kind, path in report.exported.items():
        console.print(f"exported {kind}: {path}", highlight=False, soft_wrap=True)
    candidates = report.candidates
    console.print(
        f"{candidates['scored']} candidates scored ({candidates['failed']} failed, {candidates['resumed']} from an earlier "
        f"session) in {report.seconds:.0f} s; stopped by: {report.stopped}",
        highlight=False,
    )
    if report.tracking_note:
        console.print(report.tracking_note, style="yellow")
    console.print(f"See it in MLflow:  evosearch ui {report.name}", style="bold", highlight=False)


def show_check(console: Console, result: dict[str, Any]) -> None:
    """Problems first, then what a run would cost."""
    for problem in result["problems"]:
        console.print(f"{problem['where']}: {problem['what']}", style="red", markup=False, soft_wrap=True)
        for key in ("allowed", "next"):
            if problem.get(key):
                console.print(f"  {problem[key]}", markup=False, soft_wrap=True)
    for text in result["notes"]:
        console.print(text, markup=False, soft_wrap=True)
    forecast = result["forecast"]
    if forecast.get("seconds_per_candidate"):
        console.print(
            f"one candidate takes {forecast['seconds_per_candidate']:.2f} s on one worker; "
            f"{forecast['candidates_per_hour']:,.0f} an hour with {forecast['workers']} worker(s)",
            highlight=False,
        )
    if forecast.get("total_hours") is not None:
        console.print(f"the whole budget takes about {forecast['total_hours']:.2f} hours", highlight=False)
    if result["ok"]:
        console.print("no problems found", style="green")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
