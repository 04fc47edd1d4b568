"""The table of the benchmark: one for each problem, best first, losers included."""

from collections.abc import Sequence
from statistics import median

from benchmarks.board.entries import Json

from .worlds import PROBLEMS

HEAD = (
    "method",
    "experts",
    "seeds",
    "defaults",
    "best of the sweep",
    "gain",
    "lead over the average",
    "interval above 0",
)
INTRODUCTION = """# Merge methods compared

Every registered method at its defaults, and at the setting of a small sweep that is best on `validation`; scores are
points on unseen documents of `test`, median over seeds [lowest, highest]. Settings are the same for all experts and are
drawn from the bounds of the method's parameters (a Latin hypercube): the more parameters, the coarser the sweep.
A method that takes fewer models merges the first experts only. Methods with statistics read prompts of `search`, which
nothing else uses; all tasks' together, without answers. *Gain*: of the best setting over the defaults. *Lead*:
over the uniform average of all experts; *interval above 0*: seeds whose paired 95% interval excludes zero."""


def page(results: Sequence[Json], command: str) -> str:
    """Return the tables in Markdown.

    Args:
        results: Results of cells.
        command: The command that measures them.
    """
    parts = [INTRODUCTION]
    for name in PROBLEMS:
        if own := [result for result in results if result["problem"] == name]:
            parts += _problem(name, own, command)
    return "\n\n".join(parts) + "\n"


def _problem(name: str, results: Sequence[Json], command: str) -> list[str]:
    dates = sorted(result["date"][:10] for result in results)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    methods: dict[str, list[Json]] = {}
    for result in results:
        methods.setdefault(result["method"], []).append(result)
    measured = {method: [one for one in own if "best" in one] for method, own in methods.items()}
    rows = sorted((m for m in measured if measured[m]), key=lambda m: -median(_tests(measured[m], "best")))
    lines = [f"| {' | '.join(HEAD)} |", "|---|" + "---:|" * (len(HEAD) - 1)]
    lines += [f"| {' | '.join(_cells(method, measured[method]))} |" for method in rows]
    refused = [f"- `{method}`: {own[0]['refused']}" for method, own in methods.items() if not measured[method]]
    parts = [f"## {name}: {PROBLEMS[name].text}", f"*{when} · `{command} --problem {name}`*", "\n".join(lines)]
    return parts + (["Not possible:\n\n" + "\n".join(refused)] if refused else [])


def _cells(method: str, results: Sequence[Json]) -> list[str]:
    leads = [result["lead"] for result in results]
    gains = [result["gain"][0] for result in results if result["gain"] is not None]
    return [
        f"`{method}`",
        f"{results[0]['models']} of {results[0]['of']}",
        str(len(results)),
        _spread(_tests([result for result in results if result["default"]], "default"), ".1f"),
        _spread(_tests(results, "best"), ".1f"),
        _spread(gains, "+.1f"),
        _spread([lead[0] for lead in leads], "+.1f"),
        f"{sum(lead[1] > 0 for lead in leads)} of {len(leads)}",
    ]


def _tests(results: Sequence[Json], which: str) -> list[float]:
    return [result[which]["test"]["score"][0] for result in results]


def _spread(values: Sequence[float], form: str) -> str:
    """Median [lowest, highest]; one value as it is."""
    if not values:
        return "–"
    middle = format(median(values), form)
    return middle if len(values) == 1 else f"{middle} [{min(values):{form}}, {max(values):{form}}]"
