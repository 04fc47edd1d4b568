"""The Pareto set as one self-contained HTML file: a figure and a table, without external scripts, styles or fonts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from evosearch.evaluation.types import Estimate
from evosearch.search.titles import title as title_of

WIDTH, HEIGHT, MARGIN = 640, 420, 60  # of the figure, in pixels
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
    ".rest{fill:#b9bec5}.set{fill:#1f6fb2}svg text{font:12px system-ui,sans-serif;fill:#444}"
)


@dataclass(frozen=True)
class ParetoPoint:
    """One candidate with its objectives as reported to the optimizer."""

    candidate: str
    recipe_id: str
    pareto: bool  # in the Pareto set
    objectives: Mapping[str, Estimate]


def pareto_page(name: str, objectives: Sequence[str], points: Sequence[ParetoPoint]) -> str:
    """Return the page of one search.

    Args:
        name: Name of the search.
        objectives: Names of the objectives; the figure shows the first two.
        points: All reported candidates; the table lists those in the set in this order.
    """
    found = [point for point in points if point.pareto]
    title = escape(f"{name}: {len(found)} of {len(points)} candidates are in the Pareto set")
    note = (
        "A candidate is in the set if no other one is at least as good in every objective and better in one. Values "
        "are those reported to the optimizer, on the search split, with standard errors; candidates that break a guard "
        "are not in the set."
    )
    figure = _figure(objectives, points) if points else ""
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = f"<h1>{title}</h1>\n<p>{escape(note)}</p>\n{figure}\n{_table(objectives, found)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}\n</body></html>\n'


def _table(objectives: Sequence[str], points: Sequence[ParetoPoint]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ("candidate", *objectives, "recipe_id"))
    lines = []
    for point in points:
        values = (point.objectives[name] for name in objectives)
        cells = (
            title_of(point.candidate),
            *(f"{one.value:.4g} ± {one.stderr:.2g}" for one in values),
            point.recipe_id[:12],
        )
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "\n</table>"


def _figure(objectives: Sequence[str], points: Sequence[ParetoPoint]) -> str:
    """Plot the first two objectives of all candidates; up and to the right is better."""
    across, up = objectives[0], objectives[1]
    placed = [(point.objectives[across].value, point.objectives[up].value, point) for point in points]
    xs, ys = _scale([x for x, _, _ in placed], MARGIN, WIDTH - 20), _scale([y for _, y, _ in placed], HEIGHT - 40, 20)
    drawn = []
    for x, y, point in sorted(placed, key=lambda entry: entry[2].pareto):  # the set on top
        kind, size = ("set", 5) if point.pareto else ("rest", 3)
        hover = escape(f"{title_of(point.candidate)}: {across} {x:.4g}, {up} {y:.4g}")
        drawn.append(
            f'<circle class="{kind}" cx="{xs(x):.1f}" cy="{ys(y):.1f}" r="{size}"><title>{hover}</title></circle>'
        )
    bottom = HEIGHT - 40
    axes = (
        f'<path d="M{MARGIN} 20V{bottom}H{WIDTH - 20}" fill="none" stroke="#999"/>'
        f'<text x="{WIDTH - 20}" y="{HEIGHT - 8}" text-anchor="end">{escape(across)} →</text>'
        f'<text x="8" y="14">{escape(up)} ↑</text>'
        + _ends([x for x, _, _ in placed], xs, lambda at: f'x="{at:.1f}" y="{bottom + 16}" text-anchor="middle"')
        + _ends([y for _, y, _ in placed], ys, lambda at: f'x="{MARGIN - 6}" y="{at:.1f}" text-anchor="end"')
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{axes}{"".join(drawn)}</svg>'


def _scale(values: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    """Map values to pixels, from the least to the greatest; to the middle if all are equal."""
    least, span = min(values), max(values) - min(values)
    return lambda value: low + (high - low) * ((value - least) / span if span else 0.5)


def _ends(values: Sequence[float], scale: Callable[[float], float], place: Callable[[float], str]) -> str:
    return "".join(f"<text {place(scale(value))}>{value:.3g}</text>" for value in sorted({min(values), max(values)}))
