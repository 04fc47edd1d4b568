"""Output of `evosearch check`: problems, notes, and the forecast of a run's cost."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from evosearch.cli.console import show_problem
from evosearch.cli.tables import make_table
from evosearch.durations import clock, duration
from evosearch.preflight.check import TOKENS_TITLE, CheckReport, TokenCounts, token_columns

Forecast = Mapping[str, Any]  # of a `CheckReport`
KEPT = {"activations": "activations", "gradient": "one tensor's gradient"}


def show_check(console: Console, report: CheckReport) -> None:
    """Print the problems, the notes and the forecast of a check."""
    for problem in report.problems:
        show_problem(console, problem)
    for text in report.notes:
        console.print(text, markup=False, soft_wrap=True)
    show_forecast(console, report.forecast)
    if report.ok:
        console.print("no problems found", style="green")


def show_forecast(console: Console, forecast: Forecast) -> None:
    """Print tokens, memory, and time per candidate and in total, as far as they were forecast."""
    if forecast.get("tokens"):
        console.print(tokens_table(forecast["tokens"]))
    if forecast.get("cost"):
        show_cost(console, forecast["cost"])
    for name, one in (forecast.get("stages") or {"": forecast}).items():
        if one.get("seconds_per_candidate"):
            console.print(
                f"{f'stage {name}: ' if name else ''}one candidate takes {one['seconds_per_candidate']:.2f} s on one "
                f"worker; {one['candidates_per_hour']:,.0f} per hour with {one['workers']} worker(s)",
                highlight=False,
            )
    if forecast.get("total_hours") is not None:
        console.print(_total(forecast), highlight=False)


def _total(forecast: Forecast) -> str:
    ends, price = clock(datetime.fromisoformat(forecast["ends"]).timestamp()), forecast.get("price")
    cost = "" if price is None else f" and costs about {price:,.2f} (workers.price_per_hour)"
    hours = f"about {duration(3600 * forecast['total_hours'])}{cost}"
    return f"the run, including baselines, finalists and test, takes {hours}; started now, it ends by {ends}"


def tokens_table(tokens: Mapping[str, TokenCounts]) -> Table:
    """Show the tokens of one candidate by split; without a tokenizer only its items."""
    counted = any("requested" in row for row in tokens.values())
    return make_table(TOKENS_TITLE if counted else "Items", token_columns(tokens), list(tokens.items()))


def show_cost(console: Console, cost: Forecast) -> None:
    """Print the GPU hours, memory and disk space of a search, unless its GPU time is negligible."""
    counts = cost["evaluations"] or {}
    if counts.get("gradients"):
        kept = " and ".join(f"{cost['device_gib'][key]:.1f} GiB for {text}" for key, text in KEPT.items())
        shards = f"{counts['gradients']:,} of {counts['candidates']:,} candidates are shards of gradient steps"
        console.print(f"{shards}, forward and backward; on a GPU they take up to {kept}", highlight=False)
    hours = cost["gpu_hours"] or {name: seconds / 3600 for name, seconds in cost["seconds_per_candidate"].items()}
    if cost["gpu_hours"] and max(hours.values()) < 0.1:
        return
    needed, parents = (cost["device_gib"][key] for key in ("needed", "parents"))
    console.print(
        f"{cost['parameters']:,} parameters; {cost['disk_gib']:.1f} GiB of models on disk; a worker needs {needed:.1f} "
        f"GiB on its device, and {parents:.1f} GiB for parents there or in host memory",
        highlight=False,
    )
    what = "the search" if cost["gpu_hours"] else "a candidate"
    each = ", ".join(f"about {duration(3600 * value)} on one {name}" for name, value in hours.items())
    console.print(f"{what} takes {each} ({cost['assumed']})", highlight=False)
