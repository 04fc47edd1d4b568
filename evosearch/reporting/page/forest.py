"""The subject's lead over parents, baselines and the ensemble of parents, by task: a forest plot."""

from collections.abc import Mapping
from dataclasses import dataclass

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.ensemble import ensemble_accuracy
from evosearch.evaluation.statistics.intervals import Difference, paired_difference
from evosearch.evaluation.types import Column, TaskScore
from evosearch.reporting.columns import number, with_interval
from evosearch.reporting.page.contents import Block, Chart, Section, Text, plain_table
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import (
    BLUE,
    GREY,
    NONE,
    ROW,
    SYMBOLS,
    VERMILION,
    axis,
    capital,
    label,
    layout,
    named_rows,
)

TITLE, ALL = "Lead over parents and baselines", "score"
ENSEMBLE = "ensemble of all parents"
MOST_PARENTS = 4  # that the chart shows for each task; of more, the best at the task


@dataclass(frozen=True)
class Lead:
    """The subject's lead over one model on one task, or on the score; in points of it."""

    task: str
    against: str
    lead: Difference
    own: float
    other: float


def forest(facts: Facts) -> Section:
    """Return the section."""
    found, note = leads(facts)
    if not found:
        return Section("lead", TITLE, (Text(note),))
    assert facts.subject is not None
    name = facts.label(facts.subject)
    text = (
        f"{capital(name)} against each model on the same items of the {facts.split} split, in points (100 = all "
        "right, 0 = "
        "chance), with paired two-sided 95% intervals. Right of the line, it is better; a filled mark has an interval "
        "without 0. The intervals of single tasks are not corrected for their number."
    )
    if facts.split != "test":
        text += " This split also chose the model, so its leads are too high."
    drawn = _drawn(found)
    if len(drawn) < len(found):
        text += " Of the parents, the chart has the best at each task; the table has all."
    blocks: list[Block] = [Text(text), _chart(name, found, drawn)]
    return Section("lead", TITLE, (*blocks, *([Text(note)] if note else [])))


def leads(facts: Facts) -> tuple[list[Lead], str]:
    """Return the leads, by task with the score first, and a note on what is left out."""
    name, split = facts.subject, facts.split
    own = facts.columns(name, split) if name is not None else {}
    if name is None or not own:
        return [], "Left out: no right answers are recorded for this model."
    others = {facts.label(other): facts.columns(other, split) for other in facts.comparators(split)}
    others = {other: columns for other, columns in others.items() if columns.keys() >= own.keys() and columns}
    ensemble, note = _ensemble(facts, own)
    weights, chances = facts.measure
    groups = facts.groups(name, split)
    found = []
    for task in (ALL, *weights):
        tasks = dict(weights) if task == ALL else {task: 1.0}
        for other, columns in (others | {ENSEMBLE: ensemble}).items():
            if columns.keys() >= tasks.keys():
                lead = paired_difference(own, columns, tasks, chances, groups)
                found.append(Lead(task, other, lead, *(_points(one, tasks, chances) for one in (own, columns))))
    return found, note if found else "Left out: no other model is scored on this split."


def _points(columns: Mapping[str, Column], tasks: Mapping[str, float], chances: Mapping[str, float]) -> float:
    points = (weight * (columns[task].mean() - chances[task]) / (1 - chances[task]) for task, weight in tasks.items())
    return 100.0 * float(sum(points))


def _ensemble(facts: Facts, own: Mapping[str, Column]) -> tuple[dict[str, Column], str]:
    """Return task → (items,) accuracy of the parents' ensemble from their recorded scores, and what it lacks."""
    split, metrics = facts.split, {task: score.metric for task, score in _tasks(facts).items()}
    parents = [name for name, one in facts.state.baselines.items() if one.kind == "parent"]
    cards = [card for name in parents if (card := facts.card(name, split)) is not None]
    if len(cards) < 2 or len(cards) < len(parents):
        return {}, ""
    stored = [facts.ledger.columns(facts.search_id, card.candidate, split, card.sets) for card in cards]
    found: dict[str, Column] = {}
    lacking: list[str] = []
    for task in own:
        try:
            if metrics[task] != "acc":
                raise SuiteError(task, f"its metric is {metrics[task]}")
            found[task] = ensemble_accuracy(task, [columns[task] for columns in stored])
        except SuiteError:
            lacking.append(task)
    note = f"The ensemble needs multiple-choice tasks scored by acc: left out for {', '.join(lacking)}."
    return found, note if lacking else ""


def _tasks(facts: Facts) -> Mapping[str, TaskScore]:
    card = facts.card(facts.subject or "", facts.split)
    return {} if card is None else card.tasks


def _drawn(found: list[Lead]) -> list[Lead]:
    """Return the leads of the chart: on a single task, of many parents only that over the best."""
    parents = {one.against for one in found if one.against.startswith("parent ")}
    if len(parents) <= MOST_PARENTS:
        return found
    best = {task: max(own, key=lambda one: one.other) for task, own in _by_task(found, parents).items()}
    return [one for one in found if one.task == ALL or one.against not in parents or one == best[one.task]]


def _by_task(found: list[Lead], names: set[str]) -> dict[str, list[Lead]]:
    own = [one for one in found if one.against in names]
    return {task: [one for one in own if one.task == task] for task in dict.fromkeys(one.task for one in own)}


def _rows(drawn: list[Lead]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Return the labels of the rows, and (task, model) → its row."""
    names: list[str] = []
    places: dict[tuple[str, str], int] = {}
    for task in dict.fromkeys(one.task for one in drawn):
        names.append(f"<b>{label('all tasks: the score' if task == ALL else task)}</b>")
        for one in (one for one in drawn if one.task == task):
            places[task, one.against] = len(names)
            names.append(label(one.against))
    return names, places


def _chart(name: str, found: list[Lead], drawn: list[Lead]) -> Chart:
    names, places = _rows(drawn)
    traces = []
    kinds = list(dict.fromkeys(one.against for one in found))
    for one in drawn:
        sure = one.lead.lower > 0 or one.lead.upper < 0
        color = BLUE if one.lead.lower > 0 else VERMILION if one.lead.upper < 0 else GREY
        span = {"type": "data", "symmetric": False, "thickness": 2, "width": 4, "color": color}
        span |= {"array": [one.lead.upper - one.lead.value], "arrayminus": [one.lead.value - one.lead.lower]}
        symbol = SYMBOLS[kinds.index(one.against) % len(SYMBOLS)]
        edge = {"width": 2, "color": color}
        marker = {"size": 9, "symbol": symbol, "color": color if sure else NONE, "line": edge}
        hover = f"{label(one.against)}, {label(one.task)}: {with_interval(*_ends(one.lead), '+')}<extra></extra>"
        point = {"x": [one.lead.value], "y": [places[one.task, one.against]], "error_x": span, "marker": marker}
        traces.append({"type": "scatter", "mode": "markers", "hovertemplate": hover, **point})
    rows = [(one.task, one.against, number(one.own, 1), number(one.other, 1), _shown(one.lead)) for one in found]
    table = plain_table("Leads in points", ("task", "against", name, "the other", "lead"), rows, left=2)
    line = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1}}
    x_axis = axis("lead, in points")
    summary = "; ".join(f"{one.against} {_shown(one.lead)}" for one in found if one.task == ALL)
    whole = layout(x_axis, named_rows(names, showgrid=False), legend=False, shapes=[line])
    title = f"Lead of {name} with 95% intervals"
    return Chart(title, f"Forest plot. {title}. On the score: {summary}.", tuple(traces), whole, _height(names), table)


def _height(names: list[str]) -> int:
    return 70 + (ROW - 2) * len(names)


def _ends(lead: Difference) -> tuple[float, float, float]:
    return lead.value, lead.lower, lead.upper


def _shown(lead: Difference) -> str:
    return with_interval(*_ends(lead), "+")
