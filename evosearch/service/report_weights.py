"""The report's section on the models' weights: norms, cosines and sign conflicts of the task vectors, by layer."""

from collections.abc import Sequence

from evosearch.recipe.schema import Recipe
from evosearch.reporting.export import check_unchanged
from evosearch.reporting.page.contents import Block, Chart, Section, Text, table_of
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import COLORS, DASHES, SYMBOLS, axis, label, layout, rounded
from evosearch.reporting.page.write import WEIGHTS
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.service.analyze_columns import change_columns
from evosearch.service.analyze_models import Analyzed
from evosearch.service.analyze_weights import ChangeFigures, WeightAnalysis, analyze_weights
from evosearch.setup.models import open_models

HEIGHT = 340
Line = tuple[str, list[float | None]]  # name, one value for each layer


def weights_section(ledger: Ledger, search_id: str, watcher: Watcher, allow_pickle: bool = False) -> Section:
    """Open the models of a recorded search, and compare their task vectors.

    Raises:
        InputError: A model is missing, or has changed since the search.
    """
    facts = Facts.read(ledger, search_id)
    recipe = facts.searched_recipe
    if recipe is None:
        return _left_out("no candidate has a score yet")
    if recipe.routing is not None:
        return _left_out("a route merges no weights")
    return _section(facts, _analyzed(facts, recipe, watcher, allow_pickle))


def _left_out(why: str) -> Section:
    return Section("weights", WEIGHTS, (Text(f"Left out: {why}."),))


def _analyzed(facts: Facts, recipe: Recipe, watcher: Watcher, allow_pickle: bool) -> WeightAnalysis:
    title = facts.label(facts.searched or "")
    models = open_models(recipe, title, watcher, allow_pickle, recipes=facts.state.recipes)
    check_unchanged(facts.state, models)
    analyzed = Analyzed(recipe, True, recipe.base_model, recipe.parents, models, title)
    return analyze_weights(analyzed, watcher)


def _section(facts: Facts, found: WeightAnalysis) -> Section:
    names = [facts.short(model) for model in found.models]
    text = (
        f"Changes of {len(names)} model(s) from {facts.short(found.base)}, over the matrices of each layer: "
        f"{_legend(names)}. "
        "A conflict is a weight that at least two models change, in opposite directions."
    )
    sizes = [(name, [row.relative[at] for row in found.layers]) for at, name in enumerate(names)]
    blocks: list[Block] = [Text(text), _chart("Size of the change, ‖τ‖ / ‖θ₀‖", found.layers, sizes, len(names))]
    if len(names) > 1:
        shares: list[Line] = [
            ("sign conflicts", [row.conflict for row in found.layers]),
            ("sign conflicts weighted by size", [row.weighted_conflict for row in found.layers]),
            ("least cosine of two models", [min(_cosines(row), default=None) for row in found.layers]),
            ("greatest cosine of two models", [max(_cosines(row), default=None) for row in found.layers]),
        ]
        blocks.append(_chart("Sign conflicts and cosines", found.layers, shares, len(names)))
    blocks.append(table_of("By kind of module", change_columns(len(names), "module"), found.kinds))
    return Section("weights", WEIGHTS, tuple(blocks))


def _legend(names: Sequence[str]) -> str:
    return ", ".join(f"τ{at} {name}" for at, name in enumerate(names, start=1))


def _cosines(row: ChangeFigures) -> list[float]:
    return [pair.cosine for pair in row.pairs if pair.cosine is not None]


def _chart(title: str, rows: Sequence[ChangeFigures], lines: Sequence[Line], models: int) -> Chart:
    places = [label(row.name, 16) for row in rows]
    traces = []
    for at, (name, values) in enumerate(lines):
        color, dash = COLORS[at % len(COLORS)], DASHES[at % len(DASHES)]
        look = {
            "line": {"color": color, "dash": dash},
            "marker": {"symbol": SYMBOLS[at % len(SYMBOLS)], "color": color},
        }
        points = {"x": places, "y": [rounded(value) for value in values], "name": label(name, 40), **look}
        traces.append({"type": "scatter", "mode": "lines+markers", **points})
    known = [(name, [value for value in values if value is not None]) for name, values in lines]
    ends = "; ".join(f"{name} from {min(own):.3g} to {max(own):.3g}" for name, own in known if own)
    table = table_of("By layer", change_columns(models, "layer"), rows)
    return Chart(title, f"{title} by layer: {ends}.", tuple(traces), layout(axis(""), axis("")), HEIGHT, table)
