"""The page of the board: a table for each family of problems, best median lead first, losers included."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.board.entries import Json, Method, Optimizer, Problem
from benchmarks.board.judging import best_scale

HEAD = (
    "method",
    "optimizer",
    "searches",
    "score on test",
    "lead over the best scale",
    "interval above 0",
    "promoted",
    "lead in mean metric",
    "rank correlation",
    "item evaluations",
    "minutes",
)
Group = tuple[str, str, int]  # method, optimizer, item evaluations
INTRODUCTION = """# The board

Searches of `benchmarks/board`: problems × methods × optimizers × seeds at equal item evaluations (a gradient counts
three per item), each an `evosearch run` up to the gate's decision. Scores and leads are those of the candidate that is
best on `validation`, on documents of the test split that nothing else used, in points of score: median over the
searches [lowest, highest]. *Interval above 0*: searches whose paired 95% interval of the lead over the best single
scale excludes zero. *Promoted*: searches whose candidate passed the gate. *Rank correlation*: of what the search was
told with the score on `validation`, over finalists and baselines. Every seed draws other documents. Losers are listed,
too."""


def page(
    results: Sequence[Json],
    problems: Mapping[str, Problem],
    methods: Mapping[str, Method],
    optimizers: Mapping[str, Optimizer],
) -> str:
    """The page in Markdown.

    Args:
        results: Results of cells; those of problems that no longer exist are left out.
        problems: Problems by name.
        methods: Methods by name.
        optimizers: Optimizers by name.
    """
    known = [result for result in results if result["problem"] in problems]
    families = dict.fromkeys(problems[result["problem"]].family for result in known)
    parts = [INTRODUCTION]
    for family in families:
        own = [result for result in known if problems[result["problem"]].family == family]
        parts.append(_family(family, own, problems))
    parts.append("## Methods and optimizers")
    used = {result["method"] for result in known}, {result["optimizer"] for result in known}
    lines = [f"- `{name}`: {methods[name].text}." for name in methods if name in used[0]]
    lines += [f"- `{name}`: {optimizers[name].text}." for name in optimizers if name in used[1]]
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _family(family: str, results: Sequence[Json], problems: Mapping[str, Problem]) -> str:
    """Section of one family: its setting, the table, controls, and what was refused."""
    judged = [result for result in results if "leads" in result]
    refused = [result for result in results if "refused" in result]
    problem = problems[results[0]["problem"]]
    dates = sorted(result["date"][:10] for result in results)
    names = " ".join(dict.fromkeys(result["problem"] for result in results))
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    parts = [f"## {family}: {problem.text}", f"*{when} · `python -m benchmarks.board --problems {names}`*"]
    if judged:
        parts += [_setting(judged), _table(judged)]
        parts += [text] if (text := _controls(judged)) else []
    reasons = dict.fromkeys(f"- `{one['method']}` with `{one['optimizer']}`: {one['refused']}" for one in refused)
    parts += ["Not possible:\n\n" + "\n".join(reasons)] if reasons else []
    return "\n\n".join(parts)


def _setting(results: Sequence[Json]) -> str:
    counts = [sum(result["documents"].values()) for result in results]
    scales = [_test(result, name) for result in results if (name := best_scale(result))]
    documents = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    best = f" The best single scale has {_spread(scales, '.1f')}." if scales else ""
    return f"{documents} test documents.{best}"


def _table(results: Sequence[Json]) -> str:
    groups: dict[Group, list[Json]] = {}
    for result in results:
        groups.setdefault((result["method"], result["optimizer"], result["items"]), []).append(result)
    rows = sorted(groups.items(), key=lambda entry: -_median_lead(entry[1]))
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|" + "---:|" * (len(HEAD) - 2)]
    lines += [f"| {' | '.join(_cells(group, own))} |" for group, own in rows]
    return "\n".join(lines)


def _cells(group: Group, results: Sequence[Json]) -> list[str]:
    method, optimizer, items = group
    count, leads = len(results), [_lead(result, "score") for result in results]
    known = [lead for lead in leads if lead is not None]
    metric = [lead[0] for result in results if (lead := _lead(result, "metric")) is not None]
    promoted = sum(result["promoted"] == result["finalist"] for result in results)
    return [
        f"`{method}`",
        f"`{optimizer}`",
        str(count),
        _spread([_test(result, result["finalist"]) for result in results], ".1f"),
        _spread([lead[0] for lead in known], "+.1f"),
        f"{sum(lead[1] > 0 for lead in known)} of {len(known)}",
        f"{promoted} of {count}",
        _spread(metric, "+.1f"),
        _spread([result["rank_correlation"] for result in results if result["rank_correlation"] is not None], ".2f"),
        f"{items:,}",
        f"{median(result['seconds'] for result in results) / 60:.1f}",
    ]


def _controls(results: Sequence[Json]) -> str:
    """Leads over training and over the placebo, of the searches that had them."""
    lines = []
    for kind, text in (("trained", "training on the same documents"), ("placebo", "the placebo")):
        for group, own in _by_group([result for result in results if _named(result, kind)]).items():
            names = [(result, _named(result, kind)) for result in own]
            leads = [result["leads"][name]["score"] for result, name in names if name]
            above = sum(lead[1] > 0 for lead in leads)
            line = f"- `{group[0]}` with `{group[1]}` leads {text} by {_spread([lead[0] for lead in leads], '+.1f')}"
            lines.append(f"{line}; the interval is above zero in {above} of {len(leads)}.")
    return "\n".join(lines)


def _by_group(results: Sequence[Json]) -> dict[tuple[str, str], list[Json]]:
    found: dict[tuple[str, str], list[Json]] = {}
    for result in results:
        found.setdefault((result["method"], result["optimizer"]), []).append(result)
    return found


def _named(result: Json, kind: str) -> str | None:
    """The model of a kind that was compared with the finalist."""
    return next((name for name in result["leads"] if name.partition(":")[0] == kind), None)


def _lead(result: Json, measure: str) -> list[float] | None:
    """Lead over the best scale with its interval; None if there is no scale."""
    name = best_scale(result)
    found: list[float] | None = result["leads"][name][measure] if name else None
    return found


def _median_lead(results: Sequence[Json]) -> float:
    return median([lead[0] for result in results if (lead := _lead(result, "score"))] or [float("-inf")])


def _test(result: Json, name: str) -> float:
    return float(result["scores"]["test"][name])


def _spread(values: Sequence[float], form: str) -> str:
    """Median [lowest, highest]; one value as it is."""
    if not values:
        return "–"
    shown: Callable[[float], str] = lambda value: format(value, form)  # noqa: E731
    middle = shown(median(values))
    return middle if len(values) == 1 else f"{middle} [{shown(min(values))}, {shown(max(values))}]"
