"""Importance of dimensions: fANOVA of the candidates and slices, or the derivatives that the optimizer was told."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from evosearch.recipe.shapes import Scalar
from evosearch.reporting.page.contents import Block, Chart, Section, Text, plain_table
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import BLUE, ROW, axis, label, layout, named_rows, rounded
from evosearch.reporting.page.slices import slices
from evosearch.search.optimizers import _importance

TITLE = "Importance of dimensions"
LEAST, PER_DIMENSION = 40, 4  # candidates that fANOVA needs, in all and for each dimension
MOST_DIMENSIONS = 50  # of which trees over a few hundred candidates can tell effects apart
MOST = 300  # candidates, spread over the search: the time grows with their square
SHOWN = 20


def importance(facts: Facts) -> Section:
    """Return the section."""
    if facts.state.gradients:
        return Section("importance", TITLE, _by_gradient(facts))
    genomes, values = _told(facts)
    dimensions = len(genomes[0]) if genomes else 0
    wanted = max(LEAST, PER_DIMENSION * dimensions)
    if dimensions < 2 or dimensions > MOST_DIMENSIONS or len(genomes) < wanted or len(set(values)) < 2:
        why = f"{len(genomes)} distinct candidates with a value for {dimensions} dimension(s)"
        needs = f"it needs 2 to {MOST_DIMENSIONS} dimensions, and {wanted} candidates for that many"
        left_out = Text(f"Left out: fANOVA would have {why}; {needs}.")
        some = (slices(facts, genomes, values, list(genomes[0])),) if len(genomes) > 1 and dimensions else ()
        return Section("importance", TITLE, (left_out, *some))
    kept = sorted({round(at) for at in np.linspace(0, len(genomes) - 1, min(MOST, len(genomes)))})
    found = _importance.fanova([genomes[at] for at in kept], [values[at] for at in kept])
    count = f"{len(kept)} candidates" if len(kept) == len(genomes) else f"{len(kept)} of {len(genomes)} candidates"
    text = (
        "Share of the variance of the fitness over the whole searched box that a dimension explains by itself "
        "(fANOVA, Hutter "
        f"et al. 2014), by a random forest over {count}. An optimizer looks where it is good, so the forest knows the "
        "rest of the box less well."
    )
    by_share = sorted(found, key=lambda name: -found[name])
    charts = (_chart(facts, found, "share of the variance"), slices(facts, genomes, values, by_share))
    return Section("importance", TITLE, (Text(text), *charts))


def _told(facts: Facts) -> tuple[list[Mapping[str, Scalar]], list[float]]:
    """Return genomes and the fitness that the optimizer was told, of candidates that are not duplicates."""
    genomes: list[Mapping[str, Scalar]] = []
    values: list[float] = []
    for name, reported in facts.state.reported.items():
        one = facts.state.candidates.get(name)
        if one is not None and one.duplicate_of is None and reported.fitness is not None:
            genomes.append(facts.state.proposal(name).genome)
            values.append(reported.fitness.value)
    return genomes, values


def _by_gradient(facts: Facts) -> tuple[Block, ...]:
    """Return the mean absolute derivative of each dimension over the steps; the shards of a step add up."""
    steps: dict[int, NDArray[np.float64]] = {}
    names: list[str] = []
    for one in facts.state.candidates.values():
        found = facts.state.gradient(one) if one.gradient else None
        if found is None:
            continue
        names = names or list(facts.state.proposal(one.candidate).genome)
        slope = np.asarray(found.gradient, dtype=np.float64)
        steps[one.group] = steps[one.group] + slope if one.group in steps else slope
    if not steps:
        return (Text("Left out: no gradient is on record yet."),)
    mean = np.mean([np.abs(slope) for slope in steps.values()], axis=0)
    text = (
        f"Mean over {len(steps)} gradient steps of the absolute derivative of the fitness in each dimension: by how "
        "much the fitness changes for one unit of a coefficient, along the path that was taken."
    )
    found_by_name = dict(sorted(zip(names, map(float, mean), strict=True), key=lambda item: -item[1]))
    return Text(text), _chart(facts, found_by_name, "mean |slope|")


def _chart(facts: Facts, found: Mapping[str, float], unit: str) -> Chart:
    found = {facts.dimension(name): value for name, value in found.items()}
    shown = dict(list(found.items())[:SHOWN])
    names = [label(name, 34) for name in shown]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [rounded(one) for one in shown.values()],
        "marker": {"color": BLUE},
    }
    trace |= {
        "y": list(range(len(shown))),
        "customdata": names,
        "hovertemplate": "%{customdata}: %{x:.3g}<extra></extra>",
    }
    table = plain_table("Dimensions by importance", ("dimension", unit), [(n, f"{v:.4g}") for n, v in found.items()])
    more = f", the first {len(shown)} of {len(found)}" if len(found) > len(shown) else ""
    top = ", ".join(f"{name} {value:.3g}" for name, value in list(found.items())[:5])
    summary = f"Bars of {len(shown)} dimensions{more}. Most important: {top}."
    whole = layout(axis(unit, rangemode="tozero", nticks=5), named_rows(names, showgrid=False), legend=False)
    return Chart(f"Dimensions by importance{more}", summary, (trace,), whole, 80 + (ROW - 4) * len(shown), table)
