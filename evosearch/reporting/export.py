"""Exports of a search: the promoted winner at the end of a run, or any candidate on demand."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import get_args

from evosearch.checkpoints.licence_families import licence_warnings
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache, resolve_adapter, split
from evosearch.checkpoints.sidecar import files_of
from evosearch.checkpoints.task_vector_file import is_task_vector
from evosearch.checkpoints.tokenizers.chat_template import BUILT_IN
from evosearch.errors import InputError, LedgerError, RecipeError, did_you_mean
from evosearch.materialize.as_adapter import AdapterReport, write_adapter
from evosearch.materialize.on_disk import WeightDigests, digest_weights, write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.promotion.attestation import check_key
from evosearch.promotion.export_files import FOLDERS, Format, Origin, Recorded
from evosearch.promotion.export_files import export as write_export
from evosearch.promotion.honest import PLACEBO, TRAINED
from evosearch.recipe.files import is_recipe, load_reference
from evosearch.recipe.schema import Recipe
from evosearch.reporting.answers_read import answers_read
from evosearch.reporting.openings import times_opened
from evosearch.reporting.provenance import known_digests, record
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged, read_search, score_interval
from evosearch.setup.models import Models, open_models
from evosearch.spec.lookup import find
from evosearch.spec.run_dir import RunDir

FILES: dict[Format, str] = {"recipe": "recipe.yaml", "mergekit": "mergekit.yaml", "checkpoint": "checkpoint"}
NOT_EXPORTED = {
    TRAINED: "a fine-tuned model is no recipe, and its weights are not kept",
    PLACEBO: "a placebo is made of random task vectors, for comparison only",
}
RANK = 32  # default maximum rank of an exported adapter


@dataclass(frozen=True)
class TensorLoss:
    """Approximation of one linear weight by an adapter."""

    rank: int
    error: float  # ‖ΔW − B·A‖ / ‖ΔW‖


@dataclass(frozen=True)
class AdapterSummary:
    """Size of an exported adapter, and its approximation error relative to the merge."""

    base: str  # reference of the model that it adapts
    error: float  # over all linear weights together
    bytes: int
    tensors: Mapping[str, TensorLoss]
    saved: tuple[str, ...]  # tensors stored in full


@dataclass(frozen=True)
class ExportResult:
    """An exported candidate, with the disclosures that accompany its test scores.

    Attributes:
        search: Name of the search.
        candidate: Number of the candidate, or name of the baseline.
        recipe_id: Id of its recipe, which identifies its models by their weights.
        format: Format that was written.
        out: The file or folder.
        test_openings: Openings of the search's test set by all searches, up to now.
        contamination_acknowledged: Whether the suite acknowledges contamination.
        adapter: Size and approximation error of an adapter; None for other formats.
        warnings: Restrictions and conflicts of the licences of a checkpoint's or adapter's parents.
    """

    search: str
    candidate: str
    recipe_id: str
    format: str
    out: str
    test_openings: int
    contamination_acknowledged: bool
    adapter: AdapterSummary | None = None
    warnings: tuple[str, ...] = ()


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
    key: Path | None = None,
) -> ExportResult:
    """Export one candidate of a search.

    Args:
        search: Name, run directory or spec of the search.
        fmt: Format to write.
        out: File or folder to write.
        candidate: Candidate or baseline; the promoted one, or a stage's winner, by default.
        overwrite: Replace an existing `out`.
        watcher: Shows progress.
        rank: Maximum rank of an adapter.
        save_modules: Store changed modules other than linear layers in full, next to an adapter's A and B.
        allow_pickle: Read pickled weights of models without safetensors.
        key: File of a private key that signs an attestation of the recipe.

    Raises:
        LedgerError: There is no such search or candidate, or nothing was promoted and no candidate is named.
        InputError: `out` exists, or the models changed since the search.
    """
    _check_options(fmt, rank, save_modules)
    if key is not None:
        if fmt == "mergekit":
            raise InputError("--sign", f"not valid with --format {fmt}", "recipe, checkpoint or adapter")
        check_key(key)
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
        check_unchanged(state, models)
        source = Source(ledger, search_id, state, name, recipe, models)
        write_one(source, fmt, out, overwrite, adapter, key)
        origin = source.origin
    return ExportResult(
        search=run_dir.name,
        candidate=name,
        recipe_id=state.recipe_ids[name],
        format=fmt,
        out=str(out),
        test_openings=origin.test_openings,
        contamination_acknowledged=origin.contaminated,
        adapter=_summary(reports[0]) if reports else None,
        warnings=source.warnings if fmt in FOLDERS else (),
    )


def _summary(report: AdapterReport) -> AdapterSummary:
    tensors = {name: TensorLoss(report.ranks[name], error) for name, error in report.errors.items()}
    return AdapterSummary(report.base, report.error, report.bytes, tensors, report.saved)


def _check_options(fmt: Format, rank: int | None, save_modules: bool) -> None:
    if fmt not in get_args(Format):
        raise InputError("--format", f"got '{fmt}'", f"One of {', '.join(get_args(Format))}")
    for option, given in (("--rank", rank is not None), ("--save-modules", save_modules)):
        if given and fmt != "adapter":
            raise InputError(option, f"not valid with --format {fmt}", "--format adapter", "Remove the option")
    if rank is not None and rank < 1:
        raise InputError("--rank", f"got {rank}", "A positive integer")


def write_winner(ledger: Ledger, search_id: str, state: SearchState, out: Path) -> None:
    """Write the recipe of a stage's winner, which is an input of later stages."""
    assert state.winner is not None
    recipe = Recipe.model_validate(state.winner.recipe)
    origin = origin_of(ledger, search_id, state, state.winner.candidate)
    write_export(recipe, "recipe", out, origin, load=partial(load_reference, known=state.recipes), overwrite=True)


def export_promoted(
    ledger: Ledger, search_id: str, state: SearchState, name: str, models: Models, folder: Path, checkpoint: bool
) -> dict[str, str]:
    """Export the winner as a recipe and as mergekit YAML, and as a checkpoint if requested.

    Returns:
        Format → path. Mergekit YAML is left out if mergekit cannot express the recipe.
    """
    recipe = Recipe.model_validate(state.recipe(name))
    source = Source(ledger, search_id, state, name, recipe, models)
    source.reuse(folder / FILES["recipe"])
    written: dict[str, str] = {}
    formats: tuple[Format, ...] = ("checkpoint", "recipe", "mergekit") if checkpoint else ("recipe", "mergekit")
    for fmt in formats:
        path = folder / FILES[fmt]
        try:
            write_one(source, fmt, path, overwrite=True)
        except RecipeError:
            if fmt != "mergekit":  # mergekit cannot express every recipe, which must not stop a promotion
                raise
            path.unlink(missing_ok=True)  # left from an earlier winner
            continue
        written[fmt] = str(path)
    return written


@dataclass
class Source:
    """A candidate of a search with its models, written in one or more formats; its weights are merged once."""

    ledger: Ledger
    search_id: str
    state: SearchState
    name: str
    recipe: Recipe
    models: Models
    warnings: tuple[str, ...] = ()  # on licences, once written
    _digests: WeightDigests | None = None

    @cached_property
    def origin(self) -> Origin:
        """Origin and scores of the candidate."""
        return origin_of(self.ledger, self.search_id, self.state, self.name)

    @property
    def used(self) -> dict[str, Checkpoint]:
        """Reference → checkpoint, of the recipe's models."""
        return {name: self.models.checkpoints[name] for name in self.recipe.references()}

    def write_checkpoint(self, recipe: Recipe, path: Path) -> None:
        """Write the merged model."""
        self._digests = write_checkpoint(recipe, self.used, path, donor_of(recipe)).digests

    def reuse(self, file: Path) -> None:
        """Take the digests of the weights from an earlier export to a file, if it is of the same recipe."""
        self._digests = known_digests(file, self.origin.recipe_id)

    def recorded(self, folder: Path) -> Recorded:
        """Return the section `provenance` of the recipe's file in a folder."""
        if self._digests is None:
            self._digests = digest_weights(self.recipe, self.used)
        found = (self.ledger, self.search_id, self.state, self.origin, self.recipe, self.models)
        recorded = record(*found, self._digests, folder)
        self.warnings = licence_warnings({one: card.licences for one, card in recorded.cards.items()})
        return recorded


def write_one(
    source: Source,
    fmt: Format,
    out: Path,
    overwrite: bool,
    adapter: Callable[[Recipe, Path], None] | None = None,
    key: Path | None = None,
) -> None:
    """Write one recipe in one format."""
    recipe, models = source.recipe, source.models
    folders = {name: _folders(name, checkpoint) for name, checkpoint in models.checkpoints.items() if _is_made(name)}
    adapted = {name for name in models.checkpoints if split(name)[1] is not None}
    if fmt == "mergekit":
        _refuse_task_vectors(adapted)
    if fmt == "mergekit" and recipe.chat_template in BUILT_IN:  # mergekit names its own template files
        recipe = recipe.model_copy(update={"chat_template": BUILT_IN[recipe.chat_template]})
    folder = out.absolute() if fmt in FOLDERS else out.absolute().parent
    write_export(
        *(recipe, fmt, out, source.origin),
        shape=models.layout(recipe).shape,
        folders=folders,
        adapted=adapted,
        write_checkpoint=source.write_checkpoint,
        write_adapter=adapter,
        load=models.opener.recipe,
        record=partial(source.recorded, folder),
        key=key,
        overwrite=overwrite,
    )


def _refuse_task_vectors(adapted: Iterable[str]) -> None:
    """Refuse models that mergekit cannot open.

    Raises:
        RecipeError: A model is a task vector.
    """
    for name in adapted:
        adapter = split(name)[1]
        if adapter is not None and is_task_vector(Path(adapter).expanduser()):
            what = "mergekit cannot read a task vector"
            raise RecipeError(name, what, next="Export a recipe or a checkpoint, or name the model itself")


def _is_made(reference: str) -> bool:
    """Whether a reference has a scheme or is a recipe, which mergekit cannot resolve."""
    return ":" in reference or is_recipe(split(reference)[0])


def _folders(reference: str, checkpoint: Checkpoint) -> str:
    """Replace a scheme or a recipe in a reference by the folder of its checkpoint, which may be in the cache."""
    model, adapter = split(reference)
    model = str(checkpoint.folder) if _is_made(model) else model
    if adapter is None:
        return model
    return f"{model}+{resolve_adapter(adapter, default_cache()) if ':' in adapter else adapter}"


def origin_of(ledger: Ledger, search_id: str, state: SearchState, name: str) -> Origin:
    """Return the origin and scores of a candidate, from the ledger alone."""
    original = state.original(name)
    splits = sorted(split for (one, split), card in state.cards.items() if one == original and card.score is not None)
    scores = {split: score_interval(ledger, search_id, state, original, split) for split in splits}
    statements = (times_opened(ledger, state), contamination_acknowledged(state), tuple(answers_read(state)))
    return Origin(state.name, search_id, name, state.recipe_ids[name], state.inputs, scores, *statements)


def _candidate(state: SearchState, name: str | None, run_dir: RunDir) -> str:
    if name is None:
        if state.promoted is None and state.winner is not None:  # a stage
            return state.winner.candidate
        if state.promoted is None:
            allowed = "A candidate listed by `evosearch leaderboard`, with --candidate"
            raise LedgerError(run_dir.name, "this search has not promoted a model", allowed)
        return state.promoted.candidate
    name = _named(state, name)
    if name in state.baselines and state.kind(name) in NOT_EXPORTED:
        raise LedgerError(f"--candidate {name}", NOT_EXPORTED[state.kind(name)], "Candidates and other baselines")
    if name not in state.recipe_ids:
        near = did_you_mean(name, state.baselines)
        raise LedgerError(
            f"--candidate {name}", "no such candidate or baseline", "`evosearch leaderboard` lists them", near
        )
    return name


def _named(state: SearchState, given: str) -> str:
    """Return the name of a model that is given by name or title; what is neither stays as it is."""
    if given in state.recipe_ids:
        return given
    return next((name for name in state.recipe_ids if state.title(name) == given), given)


def check_unchanged(state: SearchState, models: Models) -> None:
    """Check that models and their files are those of a search.

    Raises:
        InputError: Weights or a file have changed.
    """
    for reference, sha in models.inputs.items():
        if state.inputs.get(reference, sha) != sha:
            recorded = state.inputs[reference][:12]
            what = f"weights have changed since the search (content_sha256 {sha[:12]}, recorded {recorded})"
            raise InputError(reference, what, next="Restore the model")
    if models.recipe.vocabulary is not None or models.recipe.chat_template is not None:
        return  # a baseline's vocabulary may cover fewer models than the search's
    began = state.circumstances.files
    for reference, checkpoint in models.checkpoints.items():
        now = files_of(checkpoint)
        for file, sha in began.get(reference, {}).items():
            if now.get(file) != sha:
                raise InputError(reference, f"{file} has changed since the search", next="Restore the file")
