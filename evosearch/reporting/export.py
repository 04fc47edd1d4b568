"""Exports: the promoted winner at the end of a run, or any candidate on demand."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache, resolve_adapter, split
from evosearch.checkpoints.sidecar import files_of
from evosearch.checkpoints.tokenizers.chat_template import BUILT_IN
from evosearch.errors import InputError, LedgerError, RecipeError
from evosearch.materialize.as_adapter import AdapterReport, write_adapter
from evosearch.materialize.layout import output
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.promotion.export_files import Format, Provenance
from evosearch.promotion.export_files import export as write_export
from evosearch.recipe.files import is_recipe, load_reference
from evosearch.recipe.schema import Recipe
from evosearch.reporting.openings import times_opened
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged, read_search, score_interval
from evosearch.setup.models import Models, open_models
from evosearch.spec.lookup import find
from evosearch.spec.run_dir import RunDir

FILES: dict[Format, str] = {"recipe": "recipe.yaml", "mergekit": "mergekit.yaml", "checkpoint": "checkpoint"}
RANK = 32  # of an exported adapter, where none is asked for


def export(
    search: str,
    fmt: Format,
    out: Path,
    candidate: str | None,
    overwrite: bool,
    watcher: Watcher,
    rank: int | None = None,
    save_modules: bool = False,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Export one candidate of a search; what `evosearch export --json` prints.

    Args:
        rank: of an adapter, at most.
        save_modules: store whole, beside an adapter's A and B, what changed and is not linear.
        allow_pickle: read pickled weights where a model has no others.

    Raises:
        LedgerError: there is no such search or candidate, or nothing was promoted and no candidate is named.
        InputError: `out` exists, or the models changed since the search.
    """
    _check_adapter_options(fmt, rank, save_modules)
    run_dir = find(search)
    reports: list[AdapterReport] = []

    def adapter(merged: Recipe, path: Path) -> None:
        used = {name: models.checkpoints[name] for name in merged.references()}
        reports.append(write_adapter(merged, used, path, rank or RANK, save_modules))

    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, state = read_search(ledger, run_dir)
        name = _candidate(state, candidate, run_dir)
        recipe = Recipe.model_validate(state.recipe(name))
        models = open_models(recipe, f"candidate {name}", watcher, allow_pickle, recipes=state.recipes)
        _check_unchanged(state, models)
        source = provenance(ledger, search_id, state, name)
        write_one(recipe, fmt, out, source, models, overwrite, adapter)
    result: dict[str, Any] = {
        "search": run_dir.name,
        "candidate": name,
        "recipe_id": state.recipe_ids[name],
        "format": fmt,
        "out": str(out),
        "test_openings": source.test_openings,
        "contamination_acknowledged": source.contaminated,
    }
    return result | ({"adapter": _described(reports[0])} if reports else {})


def _described(report: AdapterReport) -> dict[str, Any]:
    """What an adapter keeps of its merge, and what it loses."""
    tensors = {name: {"rank": report.ranks[name], "error": error} for name, error in report.errors.items()}
    return {
        "base": report.base,
        "error": report.error,
        "bytes": report.bytes,
        "tensors": tensors,
        "saved": list(report.saved),
    }


def _check_adapter_options(fmt: Format, rank: int | None, save_modules: bool) -> None:
    for option, given in (("--rank", rank is not None), ("--save-modules", save_modules)):
        if given and fmt != "adapter":
            raise InputError(option, f"has no meaning for --format {fmt}", "--format adapter", "Leave it out")
    if rank is not None and rank < 1:
        raise InputError("--rank", f"got {rank}", "A positive whole number")


def write_winner(ledger: Ledger, search_id: str, state: SearchState, out: Path) -> None:
    """The recipe of a stage's winner, for later stages to build on; it follows from the ledger."""
    assert state.winner is not None
    recipe = Recipe.model_validate(state.winner.recipe)
    source = provenance(ledger, search_id, state, state.winner.candidate)
    write_export(recipe, "recipe", out, source, load=partial(load_reference, known=state.recipes), overwrite=True)


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
        try:
            write_one(recipe, fmt, path, source, models, overwrite=True)
        except RecipeError:
            if fmt != "mergekit":  # which cannot express every recipe; what was promoted is not lost by that
                raise
            path.unlink(missing_ok=True)  # an earlier winner's
            continue
        written[fmt] = str(path)
    return written


def write_one(
    recipe: Recipe,
    fmt: Format,
    out: Path,
    source: Provenance,
    models: Models,
    overwrite: bool,
    adapter: Callable[[Recipe, Path], None] | None = None,
) -> None:
    """One export of one recipe."""
    folders = {name: _folders(name, checkpoint) for name, checkpoint in models.checkpoints.items() if _is_made(name)}
    adapted = {name for name in models.checkpoints if split(name)[1] is not None}

    def checkpoint(merged: Recipe, path: Path) -> object:
        used = {name: models.checkpoints[name] for name in merged.references()}
        return write_checkpoint(merged, used, path, donor_of(merged))

    if fmt == "mergekit" and recipe.chat_template in BUILT_IN:  # mergekit's names are those of its own files
        recipe = recipe.model_copy(update={"chat_template": BUILT_IN[recipe.chat_template]})
    write_export(
        *(recipe, fmt, out, source),
        shape=output(recipe, models.checkpoints).shape,
        folders=folders,
        adapted=adapted,
        write_checkpoint=checkpoint,
        write_adapter=adapter,
        load=models.opener.recipe,
        overwrite=overwrite,
    )


def _is_made(reference: str) -> bool:
    """Whether a reference means nothing to mergekit: it has a scheme, or is a recipe."""
    return ":" in reference or is_recipe(split(reference)[0])


def _folders(reference: str, checkpoint: Checkpoint) -> str:
    """A reference with folders in place of its schemes, and of recipes, which lie merged in the cache."""
    model, adapter = split(reference)
    model = str(checkpoint.folder) if _is_made(model) else model
    if adapter is None:
        return model
    return f"{model}+{resolve_adapter(adapter, default_cache()) if ':' in adapter else adapter}"


def provenance(ledger: Ledger, search_id: str, state: SearchState, name: str) -> Provenance:
    """Where a candidate comes from and what it scored, from the ledger alone."""
    original = state.original(name)
    splits = sorted(split for candidate, split in state.cards if candidate == original)
    scores = {split: score_interval(ledger, search_id, state, original, split) for split in splits}
    told = (times_opened(ledger, state), contamination_acknowledged(state))
    return Provenance(state.name, search_id, name, state.recipe_ids[name], state.inputs, scores, *told)


def _candidate(state: SearchState, asked: str | None, run_dir: RunDir) -> str:
    if asked is None:
        if state.promoted is None and state.winner is not None:  # a stage that others build on
            return state.winner.candidate
        if state.promoted is None:
            allowed = "Name one with --candidate: `evosearch leaderboard` lists them"
            raise LedgerError(run_dir.name, "nothing is promoted in this search", allowed)
        return state.promoted.candidate
    if asked not in state.recipe_ids:
        raise LedgerError(f"--candidate {asked}", "no such candidate or baseline", "`evosearch leaderboard` lists them")
    return asked


def _check_unchanged(state: SearchState, models: Models) -> None:
    for reference, sha in models.inputs.items():
        if state.inputs.get(reference, sha) != sha:
            what = (
                f"its weights are not those of the search (content {sha[:12]}, recorded {state.inputs[reference][:12]})"
            )
            raise InputError(reference, what, next="Restore the model")
    if models.recipe.vocabulary is not None or models.recipe.chat_template is not None:
        return  # a baseline's own vocabulary is of fewer models than the search's
    began = state.circumstances.files
    for reference, checkpoint in models.checkpoints.items():
        now = files_of(checkpoint)
        for file, sha in began.get(reference, {}).items():
            if now.get(file) != sha:
                raise InputError(reference, f"its {file} is not that of the search", next="Restore the file")
