"""Heat maps of a candidate's coefficients by layer and module, for each parent."""

from typing import Any

from evosearch.reporting.page.coefficient_grids import FIRST, LAST, SHARED, Grid, grids
from evosearch.reporting.page.contents import Block, Chart, Section, Table, Text, plain_table
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import ROW, axis, label, layout, named_rows, rounded

TITLE = "Coefficients by layer and module"


def coefficients(facts: Facts) -> Section:
    """Return the section."""
    recipe = facts.searched_recipe
    if recipe is None or recipe.routing is not None:
        why = "no candidate has a score" if recipe is None else "a route has no coefficients; it is drawn below"
        return Section("coefficients", TITLE, (Text(f"Left out: {why}."),))
    assert facts.searched is not None
    genome = facts.state.proposal(facts.searched).genome if facts.searched in facts.state.candidates else {}
    found = grids(recipe, genome)
    deep = [grid for grid in found if len(grid.columns) > 1]
    flat = [grid for grid in found if len(grid.columns) == 1]
    name = facts.label(facts.searched)
    text = (
        f"The numbers of {name}, as its recipe has them. Layers are counted from 0; E embeddings, N final norm, H head "
        "are shown where they have numbers of their own. No model is opened, so a number for all tensors is one row."
    )
    blocks: list[Block] = [Text(text)] if found else [Text(f"Left out: {name} has no numbers to show.")]
    for parameter in dict.fromkeys(grid.parameter for grid in deep):
        same = [grid for grid in deep if grid.parameter == parameter]
        numbers = [number for grid in same for number in grid.values.values()]
        scale = _scale(min(numbers), max(numbers))
        if all(len(grid.rows) == 1 for grid in same):
            blocks.append(_map(parameter, _joined(facts, same), scale))
        else:
            blocks += [_map(f"{parameter} of {_of(facts, grid)}", grid, scale) for grid in same]
    return Section("coefficients", TITLE, (*blocks, *([_flat(facts, flat)] if flat else [])))


def _of(facts: Facts, grid: Grid) -> str:
    return SHARED if grid.parent == SHARED else facts.short(grid.parent)


def _joined(facts: Facts, same: list[Grid]) -> Grid:
    """Return grids of one row each as one grid, with a row for each parent."""
    values = {(_of(facts, grid), column): value for grid in same for (_, column), value in grid.values.items()}
    ends = dict.fromkeys(column for grid in same for column in grid.columns)
    layers = sorted((name for name in ends if name.isdigit()), key=int)
    start = list(ends).index(layers[0]) if layers else len(ends)
    names = [name for name in ends if not name.isdigit()]
    columns = (*names[:start], *layers, *names[start:])
    return Grid("", same[0].parameter, tuple(_of(facts, grid) for grid in same), columns, values)


def _scale(low: float, high: float) -> dict[str, Any]:
    """Return the colors: one direction for numbers above 0, two around 0 otherwise; safe for the color-blind."""
    if low < 0:
        reach = max(-low, high)
        return {"colorscale": "RdBu", "reversescale": True, "zmin": rounded(-reach), "zmax": rounded(reach)}
    return {"colorscale": "Cividis", "zmin": rounded(low), "zmax": rounded(high if high > low else low + 1.0)}


def _map(title: str, grid: Grid, scale: dict[str, Any]) -> Chart:
    z = [[rounded(grid.values.get((row, column)), 4) for column in grid.columns] for row in grid.rows]
    bar = {"orientation": "h", "thickness": 8, "len": 0.6, "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"}
    trace = {
        "type": "heatmap",
        "z": z,
        "x": list(range(len(grid.columns))),
        "y": list(range(len(grid.rows))),
        "customdata": [[f"{label(row)}, {_column(column)}" for column in grid.columns] for row in grid.rows],
        "hovertemplate": "%{customdata}: %{z:.3g}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
        "colorbar": bar,
        **scale,
    }
    few = max(1, -(-len(grid.columns) // 16))  # a tick for every n-th column, and for the ends
    kept = [at for at, name in enumerate(grid.columns) if not name.isdigit() or int(name) % few == 0]
    ticks: dict[str, Any] = {
        "tickmode": "array",
        "tickvals": kept,
        "ticktext": [_tick(grid.columns[at]) for at in kept],
    }
    rows = [(row, *(_cell(value) for value in line)) for row, line in zip(grid.rows, z, strict=True)]
    table = plain_table(title, ("", *map(_column, grid.columns)), rows)
    known = [number for line in z for number in line if number is not None]
    summary = (
        f"Heat map of {title}: {len(grid.rows)} row(s) by {len(grid.columns)} column(s), from {min(known):.3g} to "
    )
    summary += f"{max(known):.3g}."
    below = axis("layer", showgrid=False, **ticks)
    whole = layout(below, named_rows([label(row) for row in grid.rows], showgrid=False), legend=False)
    return Chart(title, summary, (trace,), whole, 120 + ROW * len(grid.rows), table)


def _tick(name: str) -> str:
    """Return a layer's number, or the letter of an end: there is no room for more on a narrow screen."""
    if name.isdigit():
        return name
    return "E" if FIRST.search(name) and not LAST.fullmatch(name) else "H" if "head" in name or "out" in name else "N"


def _column(name: str) -> str:
    return f"layer {name}" if name.isdigit() else name


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _flat(facts: Facts, flat: list[Grid]) -> Table:
    rows = [
        (_of(facts, grid), grid.parameter, row, _cell(number))
        for grid in flat
        for (row, _), number in grid.values.items()
    ]
    return plain_table("Numbers that are the same at every depth", ("model", "parameter", "where", "value"), rows, 3)
