"""A candidate's route through the layers of its models, drawn."""

from typing import Any

from evosearch.reporting.page.contents import Chart, Section, Text, plain_table
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import COLORS, GREY, SYMBOLS, axis, label, layout

TITLE, HEIGHT = "Route", 360


def route(facts: Facts) -> Section:
    """Return the section."""
    routing = facts.searched_recipe.routing if facts.searched_recipe is not None else None
    if routing is None:
        return Section("route", TITLE, (Text("Left out: the recipe merges weights and has no route."),))
    hops = routing.hops
    path: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "x": list(range(len(hops))),
        "y": [hop.layer for hop in hops],
    }
    path |= {"line": {"color": GREY, "width": 1}, "hoverinfo": "skip", "showlegend": False}
    traces = [path]
    for index, model in enumerate(dict.fromkeys(hop.model for hop in hops)):
        own = [(at, hop) for at, hop in enumerate(hops) if hop.model == model]
        marker = {"size": 11, "color": COLORS[index % len(COLORS)], "symbol": SYMBOLS[index % len(SYMBOLS)]}
        trace: dict[str, Any] = {"x": [at for at, _ in own], "y": [hop.layer for _, hop in own], "marker": marker}
        trace |= {"text": [f"× {hop.scale:.3g}" for _, hop in own], "name": label(facts.short(model))}
        hover = "hop %{x}: layer %{y} %{text}<extra></extra>"
        traces.append({"type": "scatter", "mode": "markers", "hovertemplate": hover, **trace})
    gains = zip(hops, routing.divisors(), strict=True)
    rows = [
        (str(at), facts.short(hop.model), str(hop.layer), f"{hop.scale:.4g}", f"{gain:.4g}")
        for at, (hop, gain) in enumerate(gains)
    ]
    headings = ("hop", "model", "layer", "scale of its input", "product of scales")
    table = plain_table("Hops", headings, rows, left=2)
    words = ", ".join(f"{facts.short(hop.model)} {hop.layer}" for hop in hops)
    summary = f"{len(hops)} hops through {len(traces) - 1} model(s): {words}."
    deepest = max(hop.layer for hop in hops)
    below = axis("hop", range=[-0.5, len(hops) - 0.5], dtick=_step(len(hops)))
    whole = layout(below, axis("layer", range=[-0.5, deepest + 0.5], dtick=_step(deepest + 1)))
    assert facts.searched is not None
    text = Text(f"The route of {facts.label(facts.searched)}, one mark for each layer that it runs.")
    drawn = Chart("Layers in the order that a token passes", summary, tuple(traces), whole, HEIGHT, table)
    return Section("route", TITLE, (text, drawn))


def _step(count: int) -> int:
    """Return the distance of ticks, whole numbers of which at most twelve are shown."""
    return max(1, -(-count // 12))
