"""Slices of the search space: fitness of all candidates by the value of one dimension at a time."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from evosearch.recipe.shapes import Scalar
from evosearch.reporting.columns import fitness_number
from evosearch.reporting.page.contents import Chart, plain_table
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import BLUE, VERMILION, axis, label, layout, rounded

SHOWN, COLUMNS = 8, 2  # panels, and those side by side
PANEL = 210  # pixels of a panel's height
MOST = 600  # candidates of a panel, spread over the search
PARTS = 4  # of a dimension's range, in the table


def slices(
    facts: Facts, genomes: Sequence[Mapping[str, Scalar]], values: Sequence[float], names: Sequence[str]
) -> Chart:
    """Return one panel for each of the first dimensions.

    Args:
        facts: The search.
        genomes: Genome of each candidate.
        values: Its fitness.
        names: Dimensions, the most important first.
    """
    shown = list(names)[:SHOWN]
    kept = sorted({round(at) for at in np.linspace(0, len(values) - 1, min(MOST, len(values)))})
    traces: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    for index, name in enumerate(shown):
        at = str(index + 1) if index else ""
        points = [(_shown(genomes[one][name]), rounded(values[one])) for one in kept]
        traces.append(_panel(points, {"xaxis": f"x{at}", "yaxis": f"y{at}"}))
        if facts.searched in facts.state.candidates and facts.searched is not None:
            own = facts.state.proposal(facts.searched).genome
            traces.append(_mark(facts, _shown(own[name]), {"xaxis": f"x{at}", "yaxis": f"y{at}"}))
        below = axis(nticks=5) | {
            "title": {"text": label(facts.dimension(name), 24), "font": {"size": 10}, "standoff": 4}
        }
        axes |= {f"xaxis{at}": below, f"yaxis{at}": axis("fitness" if index % COLUMNS == 0 else "")}
    first = (axes.pop("xaxis"), axes.pop("yaxis"))
    rows = -(-len(shown) // COLUMNS)
    grid = {"rows": rows, "columns": min(COLUMNS, len(shown)), "pattern": "independent", "xgap": 0.16, "ygap": 0.4}
    table = plain_table(
        "Fitness by value", ("dimension", "value", "candidates", "mean fitness", "best fitness"),
        [row for name in shown for row in _rows(facts, name, genomes, values)], left=2,
    )  # fmt: skip
    more = f", for {len(shown)} of {len(names)} dimensions" if len(names) > len(shown) else ""
    star = "" if facts.searched is None else f" The star is {facts.label(facts.searched)}."
    summary = (
        f"{len(shown)} panels with one point for each of {len(kept)} candidates: fitness by the value of a dimension"
        f"{more}.{star} The table has the mean fitness in each quarter of the candidates."
    )
    whole = layout(*first, legend=False, grid=grid, **axes)
    return Chart(
        f"Fitness by the value of each dimension{more}.{star}", summary, tuple(traces), whole, 40 + PANEL * rows, table
    )


def _panel(points: Sequence[tuple[Any, float | None]], place: Mapping[str, str]) -> dict[str, Any]:
    marker = {"size": 5, "color": BLUE, "opacity": 0.5}
    hover = "%{x}: %{y:.4g}<extra></extra>"
    trace: dict[str, Any] = {"type": "scatter", "mode": "markers", "marker": marker, "hovertemplate": hover}
    return trace | {**place} | {"x": [value for value, _ in points], "y": [fitness for _, fitness in points]}


def _mark(facts: Facts, value: float | str, place: Mapping[str, str]) -> dict[str, Any]:
    """Return the mark of the candidate whose numbers the page shows."""
    assert facts.searched is not None
    name = label(facts.label(facts.searched))
    marker = {"size": 12, "color": VERMILION, "symbol": "star"}
    reported = facts.state.reported.get(facts.searched)
    fitness = reported.fitness.value if reported is not None and reported.fitness is not None else None
    hover = f"{name}: %{{x}}<extra></extra>"
    trace: dict[str, Any] = {"type": "scatter", "mode": "markers", "marker": marker, "name": name}
    return trace | {**place, "hovertemplate": hover} | {"x": [value], "y": [rounded(fitness)]}


def _rows(
    facts: Facts, name: str, genomes: Sequence[Mapping[str, Scalar]], values: Sequence[float]
) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a dimension: one for each quarter of its candidates by value, or for each choice."""
    pairs = sorted(zip((_shown(genome[name]) for genome in genomes), values, strict=True))
    if any(isinstance(value, str) for value, _ in pairs):
        parts = [list(found) for _, found in groupby(pairs, key=lambda pair: pair[0])]
    else:
        cuts = [round(len(pairs) * part / PARTS) for part in range(PARTS + 1)]
        parts = [pairs[low:high] for low, high in pairwise(cuts) if high > low]
    for part in parts:
        low, high = part[0][0], part[-1][0]
        span = f"{low}" if isinstance(low, str) else f"{low:.3g} to {high:.3g}"
        told = [fitness for _, fitness in part]
        mean, best = fitness_number(float(np.mean(told))), fitness_number(max(told))
        yield facts.dimension(name), span, str(len(part)), mean, best


def _shown(value: Scalar) -> float | str:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
