"""The Pareto set as one HTML file: a figure and a table. It needs nothing beside it: no script, no style, no font."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN = 640, 420, 60  # of the figure, in pixels
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
    ".rest{fill:#b9bec5}.set{fill:#1f6fb2}svg text{font:12px system-ui,sans-serif;fill:#444}"
)


def pareto_page(name: str, objectives: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The page of one search.

    Args:
        rows: of candidates that the optimizer was told of: `candidate`, `recipe_id`, `pareto`, and `objectives` {name:
            {value, stderr, n}}; those of the set in the order in which they are to be shown.
    """
    found = [row for row in rows if row["pareto"]]
    title = escape(f"{name}: {len(found)} of {len(rows)} candidates are in the Pareto set")
    note = (
        "No other candidate is better in every objective. Values are what the optimizer was told, on the search split, "
        "with standard errors; candidates that break a guard are in no set."
    )
    figure = _figure(objectives, rows) if rows else ""
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = f"<h1>{title}</h1>\n<p>{escape(note)}</p>\n{figure}\n{_table(objectives, found)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}\n</body></html>\n'


def _table(objectives: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ("candidate", *objectives, "recipe_id"))
    lines = []
    for row in rows:
        values = (row["objectives"][name] for name in objectives)
        cells = [f"{one['value']:.4g} ± {one['stderr']:.2g}" for one in values]
        whole = (row["candidate"], *cells, str(row["recipe_id"])[:12])
        lines.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in whole) + "</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "\n</table>"


def _figure(objectives: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The first two objectives of everybody; better is to the right and up."""
    across, up = objectives[0], objectives[1]
    points = [(row["objectives"][across]["value"], row["objectives"][up]["value"], row) for row in rows]
    xs, ys = _scale([x for x, _, _ in points], MARGIN, WIDTH - 20), _scale([y for _, y, _ in points], HEIGHT - 40, 20)
    drawn = []
    for x, y, row in sorted(points, key=lambda point: bool(point[2]["pareto"])):  # the set on top
        kind, size = ("set", 5) if row["pareto"] else ("rest", 3)
        said = escape(f"{row['candidate']}: {across} {x:.4g}, {up} {y:.4g}")
        drawn.append(
            f'<circle class="{kind}" cx="{xs(x):.1f}" cy="{ys(y):.1f}" r="{size}"><title>{said}</title></circle>'
        )
    bottom = HEIGHT - 40
    axes = (
        f'<path d="M{MARGIN} 20V{bottom}H{WIDTH - 20}" fill="none" stroke="#999"/>'
        f'<text x="{WIDTH - 20}" y="{HEIGHT - 8}" text-anchor="end">{escape(across)} →</text>'
        f'<text x="8" y="14">{escape(up)} ↑</text>'
        + _ends([x for x, _, _ in points], xs, lambda at: f'x="{at:.1f}" y="{bottom + 16}" text-anchor="middle"')
        + _ends([y for _, y, _ in points], ys, lambda at: f'x="{MARGIN - 6}" y="{at:.1f}" text-anchor="end"')
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{axes}{"".join(drawn)}</svg>'


def _scale(values: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    """Value → pixel, from the least to the greatest; the middle where all are alike."""
    least, span = min(values), max(values) - min(values)
    return lambda value: low + (high - low) * ((value - least) / span if span else 0.5)


def _ends(values: Sequence[float], scale: Callable[[float], float], place: Callable[[float], str]) -> str:
    return "".join(f"<text {place(scale(value))}>{value:.3g}</text>" for value in sorted({min(values), max(values)}))
