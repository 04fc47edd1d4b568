"""The section on what each finalist lost from split to split, and on what picking the best of many gives by itself."""

from typing import Any

from evosearch.evaluation.types import SPLITS
from evosearch.reporting.generalization import FINALISTS_TITLE, FinalistRow, finalist_columns
from evosearch.reporting.page.contents import Block, Chart, Section, Text, table_of
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import COLORS, GREY, SYMBOLS, axis, label, layout, rounded
from evosearch.reporting.page.luck import selection_luck

TITLE = "From search to validation to test"
MOST = 400  # candidates whose luck is computed
HEIGHT = 380


def splits(facts: Facts) -> Section:
    """Return the section."""
    chosen, others = facts.board.finalists, facts.board.unchosen
    blocks: list[Block] = []
    rows = [row for row in (*chosen, *others) if row.scores]
    if rows:
        text = (
            "Scores of the finalists on the three splits, which have no document in common. The split that selected a "
            "model "
            "flatters it; base and parents were not selected, so their change is that of the items alone."
        )
        blocks += [Text(text), _chart(facts, rows)]
    else:
        blocks.append(Text("Left out: no finalist with right answers on record."))
    return Section("splits", TITLE, (*blocks, Text(_luck(facts))))


def _chart(facts: Facts, rows: list[FinalistRow]) -> Chart:
    traces: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        color = COLORS[index % (len(COLORS) - 1)] if row.rank else GREY
        shift = 0.06 * (index - (len(rows) - 1) / 2) * min(1.0, 9 / len(rows))  # so that intervals do not overlap
        known = {split: found for split, found in row.scores.items() if split in SPLITS}
        spans = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 3, "color": color}
        spans |= {"array": [rounded(one.upper - one.value) for one in known.values()]}
        spans |= {"arrayminus": [rounded(one.value - one.lower) for one in known.values()]}
        name = facts.label(row.candidate)
        trace = {
            "x": [SPLITS.index(split) + shift for split in known],
            "y": [rounded(one.value) for one in known.values()],
            "error_y": spans,
            "name": label(name),
            "marker": {"color": color, "size": 8, "symbol": SYMBOLS[index % len(SYMBOLS)]},
            "line": {"color": color, "width": 2, "dash": "solid" if row.rank else "dot"},
            "hovertemplate": f"{label(name)}: %{{y:.1f}}<extra></extra>",
        }
        traces.append({"type": "scatter", "mode": "lines+markers", **trace})
    ticks: dict[str, Any] = {"tickmode": "array", "tickvals": [0, 1, 2], "ticktext": list(SPLITS), "range": [-0.4, 2.4]}
    table = table_of(FINALISTS_TITLE, finalist_columns(rows), rows)
    parts = []
    for row in rows:
        if row.rank:
            scores = ", ".join(f"{found.value:.1f} on {split}" for split, found in row.scores.items())
            parts.append(f"{facts.label(row.candidate)}: {scores}")
    whole = layout(axis("", **ticks), axis("score, in points"))
    summary = f"Scores by split with 95% intervals. {'; '.join(parts)}."
    return Chart("Scores by split, with 95% intervals", summary, tuple(traces), whole, HEIGHT, table)


def _luck(facts: Facts) -> str:
    state = facts.state
    cards = {
        name: card for (name, split), card in state.cards.items() if split == "search" and name in state.candidates
    }
    names = [name for name, card in cards.items() if card.score is not None]
    names = sorted(names, key=lambda name: -cards[name].merit)[:MOST]
    if len(names) < 2:
        return (
            "The luck of picking the best of many is left out: fewer than two candidates have a score on the full "
            "search "
            "split."
        )
    if len({tuple(sorted(cards[name].sets.items())) for name in names}) > 1:
        return "The luck of picking the best of many is left out: candidates were scored on different items."
    columns = [facts.columns(name, "search") for name in names]
    worth = selection_luck(columns, *facts.measure, facts.groups(names[0], "search"))
    items = sum(column.size for task, column in columns[0].items() if task in facts.measure[0])
    of = "" if len(names) == len(cards) else f" (the best {len(names)} of {len(cards)})"
    return (
        f"Picking the best of {len(names)} candidates{of} by {items} items is worth {worth:.1f} points by itself: "
        "that is how "
        "far the luckiest would lead, on average, if all were equally good and differed on single items as they do. "
        "The more they "
        "really differ, the less luck decides."
    )
