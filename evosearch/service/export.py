"""Exports: the promoted winner at the end of a run, or any candidate on demand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evosearch.errors import InputError, LedgerError
from evosearch.evaluation.inference import Interval, interval
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.promotion.export import Format, Provenance
from evosearch.promotion.export import export as write_export
from evosearch.recipe.schema import Recipe
from evosearch.search.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.search.watching import Watcher
from evosearch.service.models import Models, open_models
from evosearch.service.paths import Places, find
from evosearch.service.recorded import read_search

FILES: dict[Format, str] = {"recipe": "recipe.yaml", "mergekit": "mergekit.yaml", "checkpoint": "checkpoint"}


def export(
    search: str, fmt: Format, out: Path, candidate: str | None, overwrite: bool, watcher: Watcher
) -> dict[str, Any]:
    """Export one candidate of a search; what `evosearch export --json` prints.

    Raises:
        LedgerError: there is no such search or candidate, or nothing was promoted and no candidate is named.
        InputError: `out` exists, or the models changed since the search.
    """
    places = find(search)
    with Ledger.open(places.ledger, read_only=True) as ledger:
        search_id, state = read_search(ledger, places)
        name = _candidate(state, candidate, places)
        recipe = Recipe.model_validate(state.recipe(name))
        models = open_models(recipe.references(), f"candidate {name}", watcher)
        _check_unchanged(state, models)
        write_one(recipe, fmt, out, provenance(ledger, search_id, state, name), models, overwrite)
    return {
        "search": places.name,
        "candidate": name,
        "recipe_id": state.recipe_ids[name],
        "format": fmt,
        "out": str(out),
    }


def export_promoted(
    ledger: Ledger, search_id: str, state: SearchState, name: str, models: Models, folder: Path, checkpoint: bool
) -> dict[str, str]:
    """The winner as recipe and as mergekit YAML, and as a checkpoint where asked; format → path."""
    recipe = Recipe.model_validate(state.recipe(name))
    source = provenance(ledger, search_id, state, name)
    written: dict[str, str] = {}
    formats: tuple[Format, ...] = ("recipe", "mergekit", "checkpoint") if checkpoint else ("recipe", "mergekit")
    for fmt in formats:
        path = folder / FILES[fmt]
        write_one(recipe, fmt, path, source, models, overwrite=True)
        written[fmt] = str(path)
    return written


def write_one(recipe: Recipe, fmt: Format, out: Path, source: Provenance, models: Models, overwrite: bool) -> None:
    """One export of one recipe."""
    folders = {name: str(checkpoint.folder) for name, checkpoint in models.checkpoints.items() if ":" in name}

    def checkpoint(merged: Recipe, path: Path) -> object:
        used = {name: models.checkpoints[name] for name in merged.references()}
        return write_checkpoint(merged, used, path, merged.base_model or merged.models[0].model)

    write_export(
        recipe, fmt, out, source, shape=models.shape, folders=folders, write_checkpoint=checkpoint, overwrite=overwrite
    )


def provenance(ledger: Ledger, search_id: str, state: SearchState, name: str) -> Provenance:
    """Where a candidate comes from and what it scored, from the ledger alone."""
    original = (state.asked.get(name) or {}).get("duplicate_of") or name
    scores = {
        split: _interval(ledger, search_id, original, split, card, state.spec)
        for (candidate, split), card in sorted(state.cards.items())
        if candidate == original
    }
    return Provenance(state.name, search_id, name, state.recipe_ids[name], state.inputs, scores)


def _interval(
    ledger: Ledger, search_id: str, candidate: str, split: str, card: Mapping[str, Any], spec: Mapping[str, Any]
) -> Interval:
    stored = ledger.columns(search_id, candidate, split)
    columns = {task: stored[task][entry["metric"]] for task, entry in card["tasks"].items()}
    measure = spec["suite"]
    return interval(columns, measure["weights"], measure["chances"])


def _candidate(state: SearchState, asked: str | None, places: Places) -> str:
    if asked is None:
        if state.promoted is None:
            allowed = "Name one with --candidate: `evosearch leaderboard` lists them"
            raise LedgerError(places.name, "nothing is promoted in this search", allowed)
        return str(state.promoted["candidate"])
    if asked not in state.recipe_ids:
        raise LedgerError(f"--candidate {asked}", "no such candidate or control", "`evosearch leaderboard` lists them")
    return asked


def _check_unchanged(state: SearchState, models: Models) -> None:
    for reference, sha in models.inputs.items():
        if state.inputs.get(reference, sha) != sha:
            what = (
                f"its weights are not those of the search (content {sha[:12]}, recorded {state.inputs[reference][:12]})"
            )
            raise InputError(reference, what, next="Restore the model")
