"""The commands as functions: the same services as the command line, with typed results and errors.

Every function imports what it needs when it is called. Wrong input raises `evosearch.InputError`, with the file and the
key; anything else that goes wrong raises `evosearch.EvosearchError`. Nothing is printed unless a `watcher` is given:
an object with the methods of `evosearch.Watcher`, which receives progress and notes. While a function runs, the process
has the umask 077, or $EVOSEARCH_UMASK.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from evosearch.environment import telemetry_off
from evosearch.umask import private_files

if TYPE_CHECKING:
    from evosearch.preflight.check import CheckReport
    from evosearch.recipe.schema import Recipe
    from evosearch.reporting.export import ExportResult
    from evosearch.reporting.leaderboard import Leaderboard
    from evosearch.reporting.report import RunReport
    from evosearch.search.progress import Watcher
    from evosearch.service.analyze import AnalyzeReport
    from evosearch.service.diff import DiffReport
    from evosearch.service.init_draft import InitReport
    from evosearch.service.merge import MergeReport
    from evosearch.service.score import ScoreReport
    from evosearch.service.verify import VerifyReport
    from evosearch.spec.spec import SearchSpec
    from evosearch.spec.stages import StagedSpec

PathLike: TypeAlias = str | os.PathLike[str]

telemetry_off()  # before the libraries that read these variables are imported


@private_files()
def init(
    models: "Sequence[PathLike]",
    out: PathLike,
    *,
    base: PathLike | None = None,
    suite: PathLike | None = None,
    allow_pickle: bool = False,
    allow_unrelated: bool = False,
    watcher: "Watcher | None" = None,
) -> "InitReport":
    """Look at models, and write a first search spec for them, with a reason for every choice; `check` passes it.

    Args:
        models: Fine-tuned models or adapters, and possibly their base.
        out: The YAML file to write; it must not exist.
        base: Their base. Without it, adapters, model cards and weights are asked.
        suite: A suite's file, or the name of one in `evals/`; by default one of general reasoning.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Merge models that share no base, which are refused otherwise.
        watcher: Receives progress.

    Raises:
        InputError: The models cannot be merged, the suite cannot be used, or `out` exists. Nothing is written.

    Examples:
        >>> import evosearch
        >>> report = evosearch.init(["./expert1", "./expert2"], "first.yaml", base="./base", suite="suite.yaml")
        >>> report.method, report.optimizer
        ('task_arithmetic', 'gradient')
    """
    from evosearch.service.init import init

    named = [_as_given(model) for model in models]
    given = None if base is None else _as_given(base)
    tasks = None if suite is None else os.fspath(suite)
    return init(named, Path(out), _watching(watcher), given, tasks, None, allow_pickle, allow_unrelated)


@private_files()
def check(
    path: PathLike,
    *,
    dry_run: bool = True,
    weights: bool = True,
    model: str | None = None,
    allow_pickle: bool = False,
    allow_unrelated: bool = False,
    watcher: "Watcher | None" = None,
) -> "CheckReport":
    """Check a search spec, a recipe or a suite, and estimate what a run costs.

    Args:
        path: The YAML file.
        dry_run: For a spec: merge and score one candidate, to measure time and memory.
        weights: For a spec: False checks what configs and tokenizers show, and estimates its cost.
        model: For a suite: model whose tokenizer counts its tokens.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Merge models that share no base, which are refused otherwise.
        watcher: Receives progress and notes.

    Returns:
        The problems, notes and forecast. Problems are listed, not raised.

    Examples:
        >>> import evosearch
        >>> report = evosearch.check("night.yaml", dry_run=False)
        >>> report.ok, report.forecast["tokens"]["search"]["items"]
        (True, 16)
    """
    from evosearch.preflight.check import check

    return check(Path(path), dry_run, _watching(watcher), allow_pickle, model, weights, allow_unrelated)


@private_files()
def run(
    spec: PathLike,
    *,
    continue_from_best: bool = False,
    allow_pickle: bool = False,
    unverified: bool = False,
    allow_unrelated: bool = False,
    watcher: "Watcher | None" = None,
) -> "RunReport":
    """Run a search to its promoted, exported winner. The same call resumes an interrupted one.

    Args:
        spec: The spec file, of one search or of several stages.
        continue_from_best: If the recorded search cannot be replayed exactly, continue from its best candidate.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Merge models that share no base, which are refused otherwise.
        unverified: Of a suite without right answers: promote the best model by the teachers' fitness on validation.
        watcher: Receives progress and notes.

    Returns:
        The result; `promoted` says whether a winner passed the gate.

    Raises:
        InputError: The input is wrong; nothing was scored.
        SearchError: The search cannot continue; the ledger has the reason.

    Examples:
        >>> import evosearch
        >>> report = evosearch.run("night.yaml")
        >>> report.candidates.scored, report.stopped
        (6, 'candidates')
    """
    from evosearch.service.run import run

    return run(Path(spec), _watching(watcher), continue_from_best, allow_pickle, unverified, allow_unrelated)


@private_files()
def score(
    model: PathLike,
    suite: PathLike,
    *,
    split: str = "search",
    items: PathLike | None = None,
    allow_pickle: bool = False,
    watcher: "Watcher | None" = None,
) -> "ScoreReport":
    """Score a model or a recipe on one split of a suite, in this process.

    Args:
        model: A model (folder, hub id, `zoo:NAME`), or a recipe file.
        suite: The suite file.
        split: `search`, `validation` or `test`; scoring on `test` is recorded.
        items: File to write one JSON line per item to.
        allow_pickle: Read pickled weights of models without safetensors.
        watcher: Receives progress and notes.

    Raises:
        InputError: The model, recipe, suite or split is wrong.
        EvosearchError: The model cannot be scored.

    Examples:
        >>> import evosearch
        >>> report = evosearch.score("./base", "suite.yaml", split="validation")
        >>> report.tasks["choice"].metric, report.tasks["choice"].n
        ('acc', 10)
    """
    from evosearch.service.score import score

    file = None if items is None else Path(items)
    return score(_reference(model), Path(suite), split, file, _watching(watcher), allow_pickle)


@private_files()
def merge(
    recipe: PathLike,
    out: PathLike,
    *,
    allow_pickle: bool = False,
    allow_unrelated: bool = False,
    watcher: "Watcher | None" = None,
) -> "MergeReport":
    """Merge the models of a recipe and write an ordinary checkpoint.

    Args:
        recipe: The recipe file.
        out: Folder to write; it must be empty or not exist.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Merge models that share no base, which are refused otherwise.
        watcher: Receives progress and notes.

    Raises:
        InputError: The recipe is wrong, its models cannot be merged, or `out` is not empty.

    Examples:
        >>> import evosearch
        >>> evosearch.merge("mean.yaml", "merged").tensors
        30
    """
    from evosearch.service.merge import merge

    return merge(Path(recipe), Path(out), _watching(watcher), allow_pickle, allow_unrelated)


@private_files()
def diff(
    base: PathLike,
    model: PathLike,
    out: PathLike,
    *,
    allow_pickle: bool = False,
    allow_unrelated: bool = False,
    watcher: "Watcher | None" = None,
) -> "DiffReport":
    """Write the task vector of a model, its difference from a base, as a folder that recipes take as a model.

    Args:
        base: The base (folder, hub id, `zoo:NAME`).
        model: A model of the same architecture, `model+adapter`, or a recipe file.
        out: Folder to write; it must be empty or not exist.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Accept a model that is no fine-tune of the base.
        watcher: Receives progress and notes.

    Raises:
        InputError: A model is wrong, the two do not fit together, or `out` is not empty.

    Examples:
        >>> import evosearch
        >>> evosearch.diff("./base", "./expert1", "vector").unchanged
        0
    """
    from evosearch.service.diff import diff

    return diff(_reference(base), _reference(model), Path(out), _watching(watcher), allow_pickle, allow_unrelated)


@private_files()
def analyze(
    models: "PathLike | Sequence[PathLike]",
    *,
    base: PathLike | None = None,
    suite: PathLike | None = None,
    leave_one_out: bool = False,
    path: bool = False,
    calibration: bool = False,
    split: Literal["search", "validation"] = "search",
    points: int = 11,
    top: int = 8,
    allow_pickle: bool = False,
    watcher: "Watcher | None" = None,
) -> "AnalyzeReport":
    """Compare the task vectors of models by layer and module, or score merges of them on a suite.

    Args:
        models: A recipe file, or models.
        base: Base that changes are measured from; default: that of the recipe.
        suite: Suite file for the next three options.
        leave_one_out: Score a recipe's merge without each parent.
        path: Score merges on the lines between two models, and from the base to each.
        calibration: Measure the calibration of choices.
        split: Split to score on.
        points: Number of merges on a path, with both ends.
        top: Number of singular vectors whose subspaces are compared.
        allow_pickle: Read pickled weights of models without safetensors.
        watcher: Receives progress and notes.

    Returns:
        The figures that were asked; without any of the three options those of the weights.

    Raises:
        InputError: The models, the suite or an option is wrong.
        EvosearchError: A merge cannot be scored.

    Examples:
        >>> import evosearch
        >>> report = evosearch.analyze(["./expert1", "./expert2"], base="./base")
        >>> [row.name for row in report.weights.layers]
        ['embeddings', 'layer 0', 'layer 1', 'layer 2', 'final_norm', 'head']
    """
    from evosearch.service.analyze import AnalyzeOptions, analyze

    listed = [models] if isinstance(models, str | os.PathLike) else models
    options = AnalyzeOptions(
        base=None if base is None else _reference(base),
        leave_one_out=leave_one_out,
        path=path,
        calibration=calibration,
        suite=None if suite is None else Path(suite),
        split=split,
        points=points,
        top=top,
        allow_pickle=allow_pickle,
    )
    return analyze([_reference(one) for one in listed], options, _watching(watcher))


@private_files()
def export(
    search: PathLike,
    out: PathLike,
    *,
    format: Literal["recipe", "mergekit", "checkpoint", "adapter"] = "recipe",
    candidate: str | None = None,
    overwrite: bool = False,
    rank: int | None = None,
    save_modules: bool = False,
    sign: PathLike | None = None,
    allow_pickle: bool = False,
    watcher: "Watcher | None" = None,
) -> "ExportResult":
    """Export one candidate of a search.

    Args:
        search: A search: its name (`name.stage` for a stage), run directory or spec file.
        out: File to write; a folder for a checkpoint or an adapter.
        format: Format to write.
        candidate: Candidate or baseline; by default the promoted one, or a stage's winner.
        overwrite: Replace an existing `out`.
        rank: Maximum rank of an adapter; 32 by default.
        save_modules: Store changed weights that are not linear in full, next to an adapter's A and B.
        sign: Private key (PEM) that signs an in-toto attestation next to the recipe.
        allow_pickle: Read pickled weights of models without safetensors.
        watcher: Receives progress and notes.

    Raises:
        LedgerError: There is no such search or candidate, or nothing was promoted and no candidate is named.
        InputError: `out` exists, or the models changed since the search.

    Examples:
        >>> import evosearch
        >>> evosearch.export("night", "best.yaml", candidate="3").format
        'recipe'
    """
    from evosearch.reporting.export import export

    name, key = os.fspath(search), None if sign is None else Path(sign)
    options = (candidate, overwrite, _watching(watcher), rank, save_modules, allow_pickle, key)
    return export(name, format, Path(out), *options)


@private_files()
def verify(
    recipe: PathLike,
    *,
    scores: bool = False,
    suite: PathLike | None = None,
    key: PathLike | None = None,
    allow_pickle: bool = False,
    watcher: "Watcher | None" = None,
) -> "VerifyReport":
    """Rebuild an exported recipe and compare models, weights and scores with what its file records.

    Args:
        recipe: The recipe's file.
        scores: Score the merge again and compare every item; scoring on `test` is recorded.
        suite: The suite's file; by default the one that the recipe's file names.
        key: Public key (PEM) that must have signed the recipe's attestation.
        allow_pickle: Read pickled weights of models without safetensors.
        watcher: Receives progress and notes.

    Returns:
        The result; `equal` says whether nothing differs.

    Raises:
        InputError: The file has nothing to compare, or a model or the suite cannot be read.

    Examples:
        >>> import evosearch
        >>> evosearch.verify(evosearch.export("night", "checked.yaml", candidate="3").out).equal
        True
    """
    from evosearch.service.verify import verify

    file, public = (None if one is None else Path(one) for one in (suite, key))
    return verify(Path(recipe), _watching(watcher), scores, file, allow_pickle, public)


@private_files()
def leaderboard(search: PathLike, *, with_runs: bool = False) -> "Leaderboard":
    """Rank the candidates and baselines of a search by score, from its ledger.

    Args:
        search: A search: its name (`name.stage` for a stage), run directory or spec file.
        with_runs: Add MLflow run ids, if the tracking store can be reached.

    Raises:
        LedgerError: There is no such search.

    Examples:
        >>> import evosearch
        >>> board = evosearch.leaderboard("night")
        >>> board.rows[0].rank, len(board.to_frame())
        (1, 13)
    """
    from evosearch.reporting.leaderboard import leaderboard
    from evosearch.spec.lookup import find

    return leaderboard(find(os.fspath(search)), with_runs)


def load_spec(path: PathLike) -> "SearchSpec | StagedSpec":
    """Read and validate a search spec with its suite; models are not opened.

    Args:
        path: The spec file, of one search or of several stages.

    Raises:
        InputError: The spec, its recipe or its suite is wrong.

    Examples:
        >>> import evosearch
        >>> spec = evosearch.load_spec("night.yaml")
        >>> spec.name, spec.config.budget.candidates
        ('night', 6)
    """
    from evosearch.spec.stages import load

    return load(Path(path))


def load_recipe(path: PathLike, *, name: str | None = None) -> "Recipe":
    """Read and validate a recipe; models are not opened.

    Args:
        path: The recipe file. Relative references are resolved against its folder.
        name: Name of the document to read, in a file of several; by default the one without a name, or else the last.

    Raises:
        RecipeError: The file is missing, or one of its documents is not a recipe.

    Examples:
        >>> import evosearch
        >>> recipe = evosearch.load_recipe("mean.yaml")
        >>> recipe.merge_method, len(recipe.models)
        ('linear', 2)
    """
    from evosearch.recipe.files import load

    return load(Path(path), name)


def _reference(model: PathLike) -> str:
    """Return the reference of a model; a Path("./base") is just "base", which could be a hub id."""
    return model if isinstance(model, str) else str(Path(model).absolute())


def _as_given(model: PathLike) -> str:
    """Return the reference of a model, where a relative path stays relative: a spec can be moved with its models."""
    return model if isinstance(model, str) else os.path.join(os.curdir, model)


def _watching(watcher: "Watcher | None") -> "Watcher":
    from evosearch.search.progress import Silent

    return Silent() if watcher is None else watcher
