"""Score of every candidate over the items spent, with the baselines as lines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evosearch.reporting.columns import fitness_number, number
from evosearch.reporting.leaderboard import shown_rows
from evosearch.reporting.leaderboard_row import LEADERBOARD_TITLE, leaderboard_columns
from evosearch.reporting.page.contents import Block, Chart, Section, Text, plain_table, table_of
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import BLUE, COLORS, DASHES, axis, label, layout, rounded
from evosearch.search.records import is_candidate
from evosearch.search.sampling import BACKWARD

TITLE, TOP = "Score over items spent", 12
HEIGHT = 420


@dataclass(frozen=True)
class Point:
    """One result of the search: a candidate, or a gradient step.

    Attributes:
        items: Item evaluations of all candidates up to this one; a differentiated item counts as three.
        value: Score or fitness.
        name: The candidate, or the step.
    """

    items: float
    value: float
    name: str


def curve(facts: Facts) -> Section:
    """Return the section."""
    by_score = _by_score(facts)
    found, steps = points(facts, by_score)
    unit = "score, in points" if by_score else "fitness"
    blocks: list[Block] = []
    if found or steps:
        text = f"Every candidate's {unit}, on the items it was scored on, by what was spent up to it on candidates."
        if steps:
            text += " A gradient step's fitness is that of its own minibatch; items differentiated count as three."
        blocks = [Text(text), _chart(facts, found, steps, unit, by_score)]
    rows = shown_rows(facts.board.rows, TOP)
    blocks.append(table_of(LEADERBOARD_TITLE, leaderboard_columns(facts.board.rows), rows, folded=bool(blocks)))
    return Section("curve", TITLE, tuple(blocks))


def _by_score(facts: Facts) -> bool:
    """Whether candidates have scores, and none is known by a gradient step or a minibatch alone."""
    cards = [card for (name, split), card in facts.state.cards.items() if split == "search" and is_candidate(name)]
    cards += list(facts.state.samples.values())
    return not facts.state.gradients and all(card.score is not None for card in cards)


def points(facts: Facts, by_score: bool) -> tuple[list[Point], list[Point]]:
    """Return candidates and gradient steps, in the order of their results."""
    state, spent = facts.state, 0.0
    found: list[Point] = []
    steps: dict[int, Point] = {}
    for event in facts.events:
        told: Mapping[str, Any] = event.payload
        if event.type == "differentiated":
            group, value = state.candidates[told["candidate"]].group, float(told["fitness"]["value"])
            spent += (1 + BACKWARD) * int(told["fitness"]["n"])
            before = steps[group].value if group in steps else 0.0
            steps[group] = Point(spent, before + value, f"step {group}")  # shards of one step add up
        elif event.type == "scored" and told["split"] == "search" and is_candidate(told["candidate"]):
            spent += int(told["fitness"]["n"])
            value = told["score"] if by_score else told["fitness"]["value"]
            found.append(Point(spent, float(value), f"candidate {told['candidate']}"))
    return found, list(steps.values())


def _chart(facts: Facts, found: list[Point], steps: list[Point], unit: str, by_score: bool) -> Chart:
    traces: list[dict[str, Any]] = []
    if steps:
        traces.append(_scatter(steps, "gradient steps", {"size": 5, "symbol": "cross", "color": BLUE}, opacity=0.6))
    if found:
        marker = {"size": 9 if steps else 6, "symbol": "diamond" if steps else "circle", "color": BLUE}
        traces.append(_scatter(found, "candidates", marker, opacity=1.0 if steps else 0.5))
    if len(found) > 1 and not steps:
        best: list[Point] = []
        top = found[0].value
        for point in found:
            top = max(top, point.value)
            best.append(Point(point.items, top, "best so far"))
        traces.append(_line(best, "best so far", BLUE, "solid", shape="hv"))
    end = max(point.items for point in (*found, *steps))
    baselines = _baselines(facts, by_score)
    for index, (name, value) in enumerate(baselines.items(), start=1):
        shown = f"{name} {_number(value, by_score)}"
        ends = [Point(0.0, value, shown), Point(end, value, shown)]
        traces.append(_line(ends, shown, COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]))
    rows = [(one.name, f"{one.items:,.0f}", _number(one.value, by_score)) for one in _thinned([*steps, *found])]
    rows += [(name, "", _number(value, by_score)) for name, value in baselines.items()]
    table = plain_table(f"{unit} over items", ("model", "items spent", unit), rows)
    best_of = max(found or steps, key=lambda point: point.value)
    summary = f"{len(found)} candidates and {len(steps)} gradient steps over {end:,.0f} items. The best value is "
    summary += f"{_number(best_of.value, by_score)} ({best_of.name}). "
    summary += "Baselines: " + "; ".join(f"{name} {_number(value, by_score)}" for name, value in baselines.items())
    whole = layout(axis("items spent on candidates", rangemode="tozero"), axis(unit))
    return Chart("Results in order, and the baselines", summary, tuple(traces), whole, HEIGHT, table)


def _baselines(facts: Facts, by_score: bool) -> dict[str, float]:
    """Return the search split's baselines: base, best parent, uniform average and best scale."""
    values: dict[str, float] = {}
    for name in facts.comparators("search"):
        card = facts.card(name, "search")
        value = None if card is None else card.score if by_score else card.fitness.value
        if value is not None:
            values[name] = value
    parents = [name for name in values if name.startswith("parent:")]
    dropped = {name for name in parents if name != max(parents, key=values.__getitem__)}
    kept = {name: value for name, value in values.items() if name not in dropped}
    return {facts.label(name).replace("parent ", "best parent "): value for name, value in kept.items()}


def _thinned(found: list[Point], most: int = 200) -> list[Point]:
    """Return every n-th point, for a table that can be read."""
    return found[:: max(1, -(-len(found) // most))]


def _scatter(found: list[Point], name: str, marker: dict[str, Any], opacity: float) -> dict[str, Any]:
    hover = "%{text}: %{y:.4g} after %{x:,} items<extra></extra>"
    text = [label(one.name) for one in found]
    marked = marker | {"opacity": opacity}
    kind = {"type": "scatter", "mode": "markers", "name": label(name), "marker": marked, "hovertemplate": hover}
    return kind | {"x": [one.items for one in found], "y": [rounded(one.value) for one in found], "text": text}


def _line(found: list[Point], name: str, color: str, dash: str, shape: str = "linear") -> dict[str, Any]:
    line = {"color": color, "dash": dash, "width": 2, "shape": shape}
    kind = {"type": "scatter", "mode": "lines", "name": label(name, 40), "line": line, "hoverinfo": "name+y"}
    return kind | {"x": [one.items for one in found], "y": [rounded(one.value) for one in found]}


def _number(value: float, by_score: bool) -> str:
    return number(value, 1) if by_score else fitness_number(value)
