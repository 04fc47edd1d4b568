"""The tables that commands print, as rich tables; numbers come ready from the services."""

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from evosearch.cli.console import duration
from evosearch.evaluation.types import IN_LANGUAGE
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.reporting.leaderboard import pareto_rows

if TYPE_CHECKING:
    from evosearch.reporting.report import RunReport


def leaderboard_table(rows: Sequence[dict[str, Any]], title: str = "Leaderboard (score on the search split)") -> Table:
    """Rank, candidate, scores by split, fitness, task metrics on `search`, and which guards are broken."""
    found = [row["splits"].get("search", {}).get("tasks", {}) for row in rows]
    shown = {task: _shown(task, entry) for tasks in found for task, entry in tasks.items()}
    tasks = sorted(shown)
    headings = ("rank", "candidate", "score", "fitness", *(shown[task] for task in tasks), "valid.", "test", "state")
    table = _table(title, headings, ("candidate", "state"))
    for row in rows:
        search = row["splits"].get("search", {}).get("tasks", {})
        values = [_number(search.get(task, {}).get("value"), 3) for task in tasks]
        others = [_number(row["splits"].get(split, {}).get("score"), 1) for split in ("validation", "test")]
        fixed = [str(row["rank"]), row["candidate"], _number(row["score"], 1), _number(row["fitness"], 4)]
        table.add_row(*fixed, *values, *others, _noted(row))
    return table


def pareto_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The candidates that none is better than in all objectives, by the first of these; values with standard errors."""
    names = list(rows[0]["objectives"])
    table = _table("Pareto set (as the optimizer was told)", ("candidate", *names, "score", "fitness"), ("candidate",))
    for row in rows:
        values = [f"{one['value']:.4g} ± {one['stderr']:.2g}" for one in row["objectives"].values()]
        table.add_row(row["candidate"], *values, _number(row["score"], 1), _number(row["fitness"], 4))
    return table


def show_pareto(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        console.print(pareto_table(rows))


def _shown(task: str, score: dict[str, Any]) -> str:
    """A task's heading; of one that is to be forgotten, the share of wrong answers is shown."""
    return f"not {task}" if score["metric"].startswith("1-") else task


def _noted(row: dict[str, Any]) -> str:
    """`scored on 45 items; breaks sort by 3.2`: the state, where the figures are of a sample, and what is lost."""
    state = str(row["state"]) + (f" on {row['sample']} items" if row["sample"] else "")
    broken = [f"{task} by {points:.1f}" for task, points in row["violations"].items()]
    return f"{state}; breaks {', '.join(broken)}" if broken else state


def status_table(rows: Sequence[dict[str, Any]], title: str = "Searches") -> Table:
    """Searches of this machine, of a ledger or of a cluster. Those of a cluster do not say how often it was opened."""
    runs = any(row.get("per_minute") is not None or row.get("seconds_left") is not None for row in rows)
    speeds = ("a minute", "left") if runs else ()
    headings = ("name", "state", "done", "failed", "best fitness", *speeds, "promoted", "opened", "updated")
    table = _table(title, headings, ("name", "state", "promoted"))
    for row in rows:
        state = f"{row['state']}: {row['problem']}" if row.get("problem") else row["state"]
        if "failed" not in row:  # a ledger that cannot be read
            table.add_row(row["name"], row["state"], *[""] * (len(headings) - 3), row["problem"])
            continue
        updated = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["updated"]))
        opened = f"{row['test_openings']}x" if "test_openings" in row else ""
        acknowledged = " *" if row.get("contamination_acknowledged") else ""
        minute, left = row.get("per_minute"), row.get("seconds_left")
        speed = ("" if minute is None else f"{minute:.1f}", "" if left is None else duration(left)) if runs else ()
        counts = (_done(row), "" if row["failed"] is None else str(row["failed"]), _number(row["best_fitness"], 4))
        table.add_row(row["name"], _short(state, 40), *counts, *speed, _found(row), opened + acknowledged, updated)
    if any(row.get("contamination_acknowledged") for row in rows):
        table.caption, table.caption_justify = f"* {CONTAMINATED}", "left"
    return table


def _done(row: dict[str, Any]) -> str:
    """`12/18` of what the budget allows, of a clock's only how many; of what runs with what it is at."""
    if row.get("done") is None:
        return ""
    done = f"{row['done']}/{row['total']}" if row.get("total") is not None else str(row["done"])
    stage = row.get("stage") or "search"
    return done if row["state"] != "running" or stage.endswith("search") else f"{stage} {done}"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _found(row: dict[str, Any]) -> str:
    """What was promoted, or what a stage found that others build on."""
    return row["promoted"] or (f"{row['winner']} (of its stage)" if row.get("winner") else "-")


def score_table(result: dict[str, Any]) -> Table:
    """Each task by its metric and, where one asks for a language, the share of its answers that are in it."""
    title = f"{result['suite']}, {result['split']}: score {result['score']:.2f}"
    reported = {task: result["reported"].get(task, {}) for task in result["tasks"]}
    spoken = {task: metrics[IN_LANGUAGE] for task, metrics in reported.items() if IN_LANGUAGE in metrics}
    headings = ("task", "metric", "value", "stderr", "items", *(["in language"] if spoken else []))
    table = _table(title, headings, ("task", "metric"))
    for name, task in result["tasks"].items():
        values = [task["metric"], f"{task['value']:.4f}", f"{task['stderr']:.4f}", str(task["n"])]
        table.add_row(name, *values, *([_number(spoken.get(name), 4)] if spoken else []))
    return table


def show_score(console: Console, result: dict[str, Any]) -> None:
    """The table, the work done, what is reported beside it, and what must be said of the test set."""
    console.print(score_table(result))
    tokens = result["tokens"]
    work = f"{tokens['forwarded']:,} tokens run; {tokens['requested']:,} requested, {tokens['distinct']:,} distinct"
    console.print(work, highlight=False)
    for task, metrics in result["reported"].items():
        shown = (result["tasks"][task]["metric"], IN_LANGUAGE) if task in result["tasks"] else ()
        beside = {name: value for name, value in metrics.items() if name not in shown}
        if beside:
            each = (f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in beside.items())
            console.print(f"{task} also: {', '.join(each)}", highlight=False)
    if "test_openings" in result:
        show_test_set(console, result["test_openings"], result["contamination_acknowledged"])


def test_table(report: "RunReport") -> Table:
    """The winner and what it was held against, on questions the search never saw."""
    title = "Test split: metrics in %; mean, and the winner's lead in points of score, with 95% intervals"
    tasks = list(report.test[0]["tasks"]) if report.test else []
    headings = [_shown(task, report.test[0]["tasks"][task]) for task in tasks]
    table = _table(title, ("model", *headings, "mean", "score", "winner leads by"), ("model",))
    for row in report.test:
        values = [_number(100 * row["tasks"][task]["value"], 1) for task in tasks]
        mean = f"{row['mean']:.1f} [{row['mean_low']:.1f}, {row['mean_high']:.1f}]"
        lead = row.get("lead")
        shown = f"{lead['value']:+.1f} [{lead['lower']:+.1f}, {lead['upper']:+.1f}]" if lead else ""
        table.add_row(row["label"], *values, mean, f"{row['score']:.1f}", shown)
    return table


def shrinkage_table(finalists: Sequence[dict[str, Any]], unchosen: Sequence[dict[str, Any]] = ()) -> Table:
    """Finalists' scores on each split, and how far they fell; base and parents, which no split chose, to compare."""
    title = "Finalists: scores, and how far they fell from split to split (95% intervals)"
    headings = ("model", "search", "validation", "test", "search to validation", "validation to test")
    table = _table(title, headings, ("model",))
    for row in [*finalists, *unchosen]:
        scores = [_number(row["scores"].get(split, {}).get("value"), 1) for split in headings[1:4]]
        falls = {f"{fall['from']} to {fall['to']}": fall for fall in row["falls"]}
        shown = [_fall(falls.get(heading)) for heading in headings[4:]]
        table.add_row(row["candidate"] + (" (not chosen)" if row in unchosen else ""), *scores, *shown)
    return table


def _fall(fall: dict[str, Any] | None) -> str:
    """`-5.2 [-9.0, -1.4]` where the score fell by 5.2 points."""
    return "" if fall is None else f"{-fall['value']:+.1f} [{-fall['upper']:+.1f}, {-fall['lower']:+.1f}]"


def show_shrinkage(console: Console, finalists: Sequence[dict[str, Any]], unchosen: Sequence[dict[str, Any]]) -> None:
    if finalists:
        console.print(shrinkage_table(finalists, unchosen))


def show_test_set(console: Console, openings: int, contaminated: bool) -> None:
    """How often the test set was opened, and what the suite acknowledges of it: beside whatever it says of a model."""
    console.print(opened(openings), style="dim")
    if contaminated:
        console.print(CONTAMINATED, style="yellow")


def show_run(console: Console, report: "RunReport") -> None:
    """Leaderboard, finalists, the gate's decision, where the recipe lies, and how to see it all in MLflow."""
    if report.stages:
        console.print(stages_table(report.stages))
    console.print(leaderboard_table(report.leaderboard[:12]))
    show_pareto(console, pareto_rows(report.leaderboard))
    show_shrinkage(console, report.finalists, report.unchosen)
    if report.test:
        console.print(test_table(report))
    for reason in report.gate["reasons"] if report.gate else ():
        console.print(reason, highlight=False)
    if report.gate:
        show_test_set(console, report.test_openings, report.contamination_acknowledged)
    for kind, path in report.exported.items():
        console.print(f"exported {kind}: {path}", highlight=False, soft_wrap=True)
    candidates = report.candidates
    console.print(
        f"{candidates['scored']} candidates scored in {report.seconds:.0f} s ({candidates['failed']} failed, "
        f"{candidates['resumed']} from an earlier session); stopped by: {report.stopped}",
        highlight=False,
    )
    if report.tracking_note:
        console.print(report.tracking_note, style="yellow")
    console.print(f"See it in MLflow:  {_program()} ui {report.name}", style="bold", highlight=False)


def stages_table(stages: Sequence[dict[str, Any]]) -> Table:
    """Every stage: how it ended, and what it found; the last one's winner is the one promoted."""
    headings = ("stage", "scored", "stopped by", "winner", "valid.")
    table = _table("Stages (winners by the validation split)", headings, ("stage", "stopped by", "winner"))
    for row in stages:
        found = row["winner"] or {"candidate": "-", "score": None}
        counts = row["candidates"]
        told = (f"{counts['scored']}/{counts['asked']}", row["stopped"], found["candidate"])
        table.add_row(row["name"], *told, _number(found["score"], 1))
    return table


def tokens_table(tokens: dict[str, dict[str, int]]) -> Table:
    """What one candidate takes, split by split; without a tokenizer only its items."""
    headings = {"requested": "requested", "distinct": "distinct", "generated_at_most": "generated at most"}
    counted = any("requested" in row for row in tokens.values())
    shown = headings if counted else {}
    title = "Tokens of one candidate" if counted else "Items"
    table = _table(title, ("split", "items", *shown.values()), ("split",))
    for split, row in tokens.items():
        table.add_row(split, f"{row['items']:,}", *(f"{row[key]:,}" for key in shown))
    return table


def show_cost(console: Console, cost: dict[str, Any]) -> None:
    """What a search takes of GPUs, memory and disk, and what was assumed; nothing of one that hardly needs a GPU."""
    hours = cost["gpu_hours"] or {name: seconds / 3600 for name, seconds in cost["seconds_per_candidate"].items()}
    if cost["gpu_hours"] and max(hours.values()) < 0.1:
        return
    needed, parents = (cost["device_gib"][key] for key in ("needed", "parents"))
    console.print(
        f"{cost['parameters']:,} parameters; {cost['disk_gib']:.1f} GiB of models on disk; a worker holds {needed:.1f} "
        f"GiB on its device, and {parents:.1f} GiB of parents there or in the host's memory",
        highlight=False,
    )
    what = "the search" if cost["gpu_hours"] else "a candidate"
    each = ", ".join(f"{_brief(value)} on one {name}" for name, value in hours.items())
    console.print(f"{what} takes {each} ({cost['assumed']})", highlight=False)


def _brief(hours: float) -> str:
    """`about 130 hours`, `about 2.4 hours`, `about 20 seconds`."""
    if hours < 0.1:
        return f"about {3600 * hours:.2g} seconds"
    return f"about {hours:,.0f} hours" if hours >= 10 else f"about {hours:.1f} hours"


def show_problem(console: Console, problem: dict[str, Any]) -> None:
    console.print(f"{problem['where']}: {problem['what']}", style="red", markup=False, soft_wrap=True)
    for key in ("allowed", "next"):
        if problem.get(key):
            console.print(f"  {problem[key]}", markup=False, soft_wrap=True)


def show_check(console: Console, result: dict[str, Any]) -> None:
    """Problems first, then what a run would cost."""
    for problem in result["problems"]:
        show_problem(console, problem)
    for text in result["notes"]:
        console.print(text, markup=False, soft_wrap=True)
    forecast = result["forecast"]
    if forecast.get("tokens"):
        console.print(tokens_table(forecast["tokens"]))
    if forecast.get("cost"):
        show_cost(console, forecast["cost"])
    for name, one in (forecast.get("stages") or {"": forecast}).items():
        if one.get("seconds_per_candidate"):
            console.print(
                f"{f'stage {name}: ' if name else ''}one candidate takes {one['seconds_per_candidate']:.2f} s on one "
                f"worker; {one['candidates_per_hour']:,.0f} an hour with {one['workers']} worker(s)",
                highlight=False,
            )
    if forecast.get("total_hours") is not None:
        ends, price = datetime.fromisoformat(forecast["ends"]).strftime("%A %Y-%m-%d %H:%M %Z"), forecast.get("price")
        paid = "" if price is None else f" and costs about {price:,.2f}, by workers.price_per_hour"
        text = f"all of it, with baselines, finalists and the test, takes about {forecast['total_hours']:.2f} hours"
        console.print(f"{text}{paid}; started now it ends by {ends}", highlight=False)
    if result["ok"]:
        console.print("no problems found", style="green")


def _table(title: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    """A plain table that fits a terminal of 100 columns and stays readable in a log file."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=heading in left)
    return table


def _program() -> str:
    """How this program was called, so that the command shown can be copied."""
    called = Path(sys.argv[0])
    if shutil.which("evosearch") or not called.is_file():
        return "evosearch"
    here = Path.cwd()
    return str(called.relative_to(here)) if called.is_relative_to(here) else str(called)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
