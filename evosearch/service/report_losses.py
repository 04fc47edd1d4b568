"""The report's section on losses: merges on the straight lines between a search's models, scored on its suite."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from evosearch.errors import SuiteError
from evosearch.recipe.schema import Recipe
from evosearch.reporting.export import check_unchanged
from evosearch.reporting.page.contents import Bullets, Chart, Section, Text, plain_table
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import COLORS, DASHES, SYMBOLS, axis, label, layout, rounded
from evosearch.reporting.page.write import LOSSES
from evosearch.reporting.provenance import recorded_suite
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.service.analyze_models import Analyzed
from evosearch.service.analyze_scores import AnalysisScorer, MergePath, line
from evosearch.setup.models import open_models

HEIGHT = 340
MOST_PAIRS = 6  # of parents: all pairs of four
SPLIT = "search"
SHARED = {"dtype", "out_dtype", "chat_template", "tokenizer_source", "tokenizer"}  # keys that scores depend on


def losses_section(ledger: Ledger, search_id: str, watcher: Watcher, allow_pickle: bool = False) -> Section:
    """Score merges of a recorded search's models, of its winner and its base.

    Raises:
        InputError: A model or the suite is missing, or has changed since the search.
        EvosearchError: A merge cannot be scored.
    """
    facts = Facts.read(ledger, search_id)
    recipe = facts.searched_recipe
    if recipe is None:
        return _left_out("no candidate has a score yet")
    if recipe.routing is not None:
        return _left_out("a route is no point of a line")
    winner = f"winner-{facts.state.recipe_ids[str(facts.searched)][:12]}.yaml"  # a recipe of the ledger, not a file
    parents = [name for name in recipe.parents if name != recipe.base_model]
    pairs = [(recipe.base_model, winner)] if recipe.base_model is not None else []
    pairs += list(combinations(parents, 2))[:MOST_PAIRS]
    if not pairs:
        return _left_out("there is neither a base nor a second model")
    scorer = _scorer(facts, recipe, winner, pairs, watcher, allow_pickle)
    names = {winner: facts.label(facts.searched or "")}
    return _section(facts, names, [line(*pair, scorer) for pair in pairs], len(parents))


def _left_out(why: str) -> Section:
    return Section("losses", LOSSES, (Text(f"Left out: {why}."),))


def _scorer(
    facts: Facts,
    recipe: Recipe,
    winner: str,
    pairs: Sequence[tuple[str, str]],
    watcher: Watcher,
    allow_pickle: bool,
) -> AnalysisScorer:
    state = facts.state
    if recorded_suite(state) is None:
        what = "the suite is gone, or has changed since the search"
        raise SuiteError(state.suite_file or "suite", what, next="Restore it, or leave out --losses")
    named = dict.fromkeys(name for pair in pairs for name in pair)
    models = [{"model": name, "parameters": {"weight": 1.0}} for name in named]
    shared = recipe.model_dump(
        mode="json", include={"dtype", "out_dtype", "chat_template", "tokenizer_source", "tokenizer"}
    )
    frame = Recipe.model_validate({"merge_method": "linear", "models": models} | shared)
    known = {**state.recipes, winner: recipe.model_dump(mode="json", exclude_unset=True)}
    opened = open_models(frame, f"candidate {facts.searched}", watcher, allow_pickle, recipes=known)
    check_unchanged(state, opened)
    analyzed = Analyzed(frame, True, None, tuple(named), opened, facts.state.name)
    return AnalysisScorer(analyzed, Path(str(state.suite_file)), SPLIT, watcher, "gold_logprob")


def _section(facts: Facts, names: Mapping[str, str], lines: Sequence[MergePath], parents: int) -> Section:
    def name(reference: str) -> str:
        return names.get(reference) or facts.short(reference)

    text = (
        "The loss, minus the mean log-probability of right answers on the search split, of merges (1 − t) · A + t · B. "
        "A barrier is the largest loss above the straight line between both ends."
    )
    if parents * (parents - 1) // 2 > MOST_PAIRS:
        text += f" Of the pairs of {parents} models, the first {MOST_PAIRS} are shown."
    titles = [f"{name(one.models[0])} → {name(one.models[1])}" for one in lines]
    said = [
        f"{title}: barrier {one.barrier:.4f}, lowest loss at t = {one.best:.2f}"
        for title, one in zip(titles, lines, strict=True)
    ]
    return Section("losses", LOSSES, (Text(text), Bullets(tuple(said)), _chart(titles, lines, said)))


def _chart(titles: Sequence[str], lines: Sequence[MergePath], said: Sequence[str]) -> Chart:
    traces = []
    for at, (title, one) in enumerate(zip(titles, lines, strict=True)):
        color = COLORS[at % len(COLORS)]
        look = {
            "line": {"color": color, "dash": DASHES[at % len(DASHES)]},
            "marker": {"symbol": SYMBOLS[at % len(SYMBOLS)], "color": color},
        }
        points = {"x": [point.t for point in one.points], "y": [rounded(point.loss) for point in one.points]}
        traces.append({"type": "scatter", "mode": "lines+markers", "name": label(title, 40), **points, **look})
    rows = [
        [f"{points[0].t:.2f}", *(f"{point.loss:.4f}" for point in points)]
        for points in zip(*(one.points for one in lines), strict=True)
    ]
    table = plain_table("Loss by t", ("t", *titles), rows)
    return Chart(
        "Loss on the lines between models",
        f"Loss at {len(rows)} points of each line. {'; '.join(said)}.",
        tuple(traces),
        layout(axis("t"), axis("loss")),
        HEIGHT,
        table,
    )
