"""The section `provenance` of an exported recipe, from the ledger and the models."""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evosearch.checkpoints.model_card import Card
from evosearch.errors import InputError
from evosearch.evaluation.statistics.intervals import Interval
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.materialize.on_disk import WeightDigests
from evosearch.promotion.export_files import Origin, Recorded
from evosearch.recipe.files import load_provenance
from evosearch.recipe.provenance import (
    Provenance,
    RecordedInterval,
    RecordedScore,
    RecordedSuite,
    RecordedTask,
    pack,
)
from evosearch.recipe.schema import Recipe
from evosearch.reporting.lm_eval_command import lm_eval_commands
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.setup.loading import metric_columns, score_interval
from evosearch.setup.model_cards import add_cards
from evosearch.setup.models import Models
from evosearch.setup.recorded_inputs import record_inputs
from evosearch.setup.versions import versions

MOST_TENSORS = 4000  # tensors that are listed by name; a file has at most 1 MiB
MOST_VALUES = 400_000  # characters of packed values of items, for the same reason
LISTED = ("python", "torch", "transformers", "lm-eval", "numpy")  # packages that change the last bits


def record(
    ledger: Ledger,
    search_id: str,
    state: SearchState,
    origin: Origin,
    recipe: Recipe,
    models: Models,
    weights: WeightDigests,
    folder: Path,
) -> Recorded:
    """Return the section of one candidate's recipe.

    Args:
        ledger: The ledger of the search.
        search_id: The search.
        state: Its state.
        origin: The candidate.
        recipe: Its recipe.
        models: The recipe's models.
        weights: Digests of the merged weights.
        folder: Folder of the recipe's file, which the commands of lm-eval start from.
    """
    inputs, commits = record_inputs(recipe, models)
    scores = _scores(ledger, search_id, state, origin, folder, recipe.output_dtype)
    measured = state.circumstances.suite
    sets = {split: dict(state.cards[state.original(origin.candidate), split].sets) for split in scores}
    seeds = {
        "recipe": recipe.seed,
        "optimizer": int(state.spec.get("optimizer", {}).get("seed", 0)),
        "splits": int(measured.get("split_seed", 0)),
    }
    provenance = Provenance(
        evosearch=versions()["evosearch"],
        date=datetime.now(UTC).date().isoformat(),
        search=origin.name,
        search_id=origin.search_id,
        candidate=origin.candidate,
        recipe_id=origin.recipe_id,
        weights_sha256=weights.weights_sha256,
        inputs=inputs,
        seeds=seeds,
        versions=merge_versions(),
        suite=RecordedSuite(
            name=measured["name"], digest=state.spec["suite"]["digest"], file=state.suite_file, items=sets
        ),
        scores=scores,
        test_openings=origin.test_openings if "test" in scores and origin.test_openings else None,
        statements=origin.statements,
        tensors=weights.tensors if len(weights.tensors) <= MOST_TENSORS else {},
    )
    cards: dict[str, Card] = {}
    for reference in recipe.references():
        add_cards(reference, cards, {**models.opener.recipes, **models.opener.nested})
    return Recorded(provenance, commits, cards)


def merge_versions() -> dict[str, str]:
    """Return package → version, and the type of processor, of what can change the last bits of a merge or a score."""
    installed = versions()
    return {**{name: installed[name] for name in LISTED}, "machine": platform.machine()}


def known_digests(file: Path, recipe_id: str) -> WeightDigests | None:
    """Return the digests of an earlier export of the same recipe by the same versions; None if there is none."""
    try:
        then = load_provenance(file) if file.is_file() else None
    except InputError:  # the file is replaced
        return None
    if then is None or then.weights_sha256 is None:
        return None
    same = (then.recipe_id, dict(then.versions)) == (recipe_id, merge_versions())
    return WeightDigests(then.weights_sha256, then.tensors) if same else None


def _scores(
    ledger: Ledger, search_id: str, state: SearchState, origin: Origin, folder: Path, dtype: str
) -> dict[str, RecordedScore]:
    """Return split → score of a candidate with its baselines and the values of its items."""
    name, suite, room = state.original(origin.candidate), recorded_suite(state), MOST_VALUES
    found: dict[str, RecordedScore] = {}
    for split, interval in origin.scores.items():
        card = state.cards[name, split]
        columns = metric_columns(ledger, search_id, state, name, split)
        values = {task: pack([float(value) for value in column]) for task, column in columns.items()}
        size = sum(map(len, values.values()))
        values, room = (values, room - size) if size <= room else ({}, room)
        baselines = {
            other: score_interval(ledger, search_id, state, other, split)
            for other in state.baselines
            if other != name and (other, split) in state.cards and state.cards[other, split].score is not None
        }
        sets = {task: ledger.item_set(digest) for task, digest in card.sets.items()}
        found[split] = RecordedScore(
            **_plain(interval),
            tasks={task: RecordedTask(**vars(entry)) for task, entry in card.tasks.items()},
            baselines={other: RecordedInterval(**_plain(one)) for other, one in baselines.items()},
            lm_eval=lm_eval_commands(suite, sets, folder, dtype) if suite else (),
            values=values,
        )
    return found


def _plain(interval: Interval) -> dict[str, Any]:
    return {key: getattr(interval, key) for key in ("value", "lower", "upper", "n")}


def recorded_suite(state: SearchState) -> Suite | None:
    """Return the suite, if its file is still what the search was started with."""
    if state.suite_file is None:
        return None
    try:
        suite = load_suite(Path(state.suite_file))
    except InputError:
        return None
    return suite if suite.digest() == state.spec["suite"]["digest"] else None
