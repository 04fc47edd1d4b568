"""The Pareto front of a search with several objectives."""

from collections.abc import Sequence

from evosearch.evaluation.types import Estimate
from evosearch.reporting.leaderboard_row import LeaderboardRow
from evosearch.reporting.page.contents import Chart, Section, Text, table_of
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import BLUE, GREY, axis, label, layout, rounded
from evosearch.reporting.pareto_table import PARETO_TITLE, pareto_columns, pareto_rows

TITLE, HEIGHT = "Pareto front", 400


def front(facts: Facts) -> Section:
    """Return the section."""
    rows = [row for row in facts.board.rows if row.objectives]
    if not rows:
        return Section("front", TITLE, (Text("Left out: the search has one objective."),))
    members = pareto_rows(facts.board.rows)
    text = (
        "A candidate is in the set if no other one is at least as good in every objective and better in one. Values "
        "are those "
        "that the optimizer was told, with standard errors; candidates that break a guard are not in the set."
    )
    table = table_of(PARETO_TITLE, pareto_columns(members), members)
    names = list(rows[0].objectives)
    if len(names) < 2 or not members:
        return Section("front", TITLE, (Text(text), table))
    across, up = names[0], names[1]
    rest = [row for row in rows if not row.pareto]
    found = [row for row in rows if row.pareto]
    chosen = sorted(found, key=lambda row: row.objectives[across].value)
    gray = {"size": 6, "color": GREY, "symbol": "circle-open"}
    others = {
        "type": "scatter",
        "mode": "markers",
        "name": "other candidates",
        "marker": gray,
        **_places(rest, across, up),
    }
    blue = {"size": 9, "color": BLUE, "symbol": "diamond"}
    line = {"color": BLUE, "width": 1, "shape": "linear" if len(names) > 2 else "vh"}
    best = {"type": "scatter", "mode": "lines+markers", "name": "Pareto set", "marker": blue, "line": line}
    summary = (
        f"{len(members)} of {len(rows)} candidates are in the Pareto set, by {across} (to the right) and {up} (up)."
    )
    traces = (others, best | _places(chosen, across, up))
    title = f"{across} and {up}" + (f", two of {len(names)} objectives" if len(names) > 2 else "")
    chart = Chart(title, summary, traces, layout(axis(across), axis(up)), HEIGHT, table)
    return Section("front", TITLE, (Text(text), chart))


def _places(rows: Sequence[LeaderboardRow], across: str, up: str) -> dict[str, object]:
    def values(name: str) -> list[float | None]:
        estimates: list[Estimate] = [row.objectives[name] for row in rows]
        return [rounded(one.value) for one in estimates]

    hover = "%{text}: %{x:.4g}, %{y:.4g}<extra></extra>"
    text = [label(f"candidate {row.candidate}") for row in rows]
    return {"x": values(across), "y": values(up), "text": text, "hovertemplate": hover}
