"""Output of `evosearch check`: problems first, then what a run costs."""

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from evosearch.cli.tables import make_table
from evosearch.reporting.columns import Column

Result = dict[str, Any]  # of `preflight.check`


def show_check(console: Console, result: Result) -> None:
    """Print the problems, the notes and the forecast of a check."""
    for problem in result["problems"]:
        show_problem(console, problem)
    for text in result["notes"]:
        console.print(text, markup=False, soft_wrap=True)
    show_forecast(console, result["forecast"])
    if result["ok"]:
        console.print("no problems found", style="green")


def show_problem(console: Console, problem: Result) -> None:
    """Print one problem, with what is allowed and what to do next."""
    console.print(f"{problem['where']}: {problem['what']}", style="red", markup=False, soft_wrap=True)
    for key in ("allowed", "next"):
        if problem.get(key):
            console.print(f"  {problem[key]}", markup=False, soft_wrap=True)


def show_forecast(console: Console, forecast: Result) -> None:
    """Print tokens, memory, and time per candidate and in total, as far as they were forecast."""
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
        console.print(_total(forecast), highlight=False)


def _total(forecast: Result) -> str:
    ends, price = datetime.fromisoformat(forecast["ends"]).strftime("%A %Y-%m-%d %H:%M %Z"), forecast.get("price")
    cost = "" if price is None else f" and costs about {price:,.2f} (workers.price_per_hour)"
    hours = f"about {forecast['total_hours']:.2f} hours{cost}"
    return f"the run, including baselines, finalists and test, takes {hours}; started now, it ends by {ends}"


def tokens_table(tokens: dict[str, dict[str, int]]) -> Table:
    """Show the tokens of one candidate by split; without a tokenizer only its items."""
    headings = {"requested": "requested", "distinct": "distinct", "generated_at_most": "generated at most"}
    counted = any("requested" in row for row in tokens.values())
    columns = [
        Column[tuple[str, dict[str, int]]]("split", lambda row: row[0], left=True),
        _count_column("items", "items"),
        *(_count_column(key, heading) for key, heading in headings.items() if counted),
    ]
    return make_table("Tokens of one candidate" if counted else "Items", columns, list(tokens.items()))


def _count_column(key: str, heading: str) -> Column[tuple[str, dict[str, int]]]:
    return Column(heading, lambda row: f"{row[1][key]:,}")


def show_cost(console: Console, cost: Result) -> None:
    """Print the GPU hours, memory and disk space of a search; nothing for one that hardly needs a GPU."""
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
    each = ", ".join(f"{_brief(value)} on one {name}" for name, value in hours.items())
    console.print(f"{what} takes {each} ({cost['assumed']})", highlight=False)


def _brief(hours: float) -> str:
    """`about 130 hours`, `about 2.4 hours` or `about 20 seconds`."""
    if hours < 0.1:
        return f"about {3600 * hours:.2g} seconds"
    return f"about {hours:,.0f} hours" if hours >= 10 else f"about {hours:.1f} hours"
