"""Public functions on searches, from the first spec to the verified winner."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evosearch.api.arguments import PathLike, as_given, watching
from evosearch.umask import private_files

if TYPE_CHECKING:
    from evosearch.preflight.check import CheckReport
    from evosearch.reporting.export import ExportResult
    from evosearch.reporting.leaderboard import Leaderboard
    from evosearch.reporting.report import RunReport
    from evosearch.search.progress import Watcher
    from evosearch.service.init_draft import InitReport
    from evosearch.service.push import PushReport
    from evosearch.service.report_page import PageResult
    from evosearch.service.verify import VerifyReport
    from evosearch.spec.spec import SearchSpec
    from evosearch.spec.stages import StagedSpec


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

    named = [as_given(model) for model in models]
    given = None if base is None else as_given(base)
    tasks = None if suite is None else os.fspath(suite)
    return init(named, Path(out), watching(watcher), given, tasks, None, allow_pickle, allow_unrelated)


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

    return check(Path(path), dry_run, watching(watcher), allow_pickle, model, weights, allow_unrelated)


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

    return run(Path(spec), watching(watcher), continue_from_best, allow_pickle, unverified, allow_unrelated)


@private_files()
def report(
    search: PathLike,
    out: PathLike | None = None,
    *,
    analyze: bool = False,
    losses: bool = False,
    allow_pickle: bool = False,
    watcher: "Watcher | None" = None,
) -> "PageResult":
    """Write the report of a search, which may still run, as one HTML page.

    Args:
        search: A search: its name (`name.stage` for a stage), run directory or spec file.
        out: File to write; by default report.html in the search's folder.
        analyze: Also open the models, and compare their weights.
        losses: Also score merges on the lines from base to winner and between parents.
        allow_pickle: Read pickled weights of models without safetensors.
        watcher: Receives progress and notes.

    Raises:
        LedgerError: There is no such search.
        InputError: The file cannot be written, or models or suite changed since the search.

    Examples:
        >>> import evosearch
        >>> evosearch.report("night", "night.html").search
        'night'
    """
    from evosearch.service.report_page import write_report

    file = None if out is None else Path(out)
    return write_report(os.fspath(search), file, watching(watcher), analyze, losses, allow_pickle)


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
    options = (candidate, overwrite, watching(watcher), rank, save_modules, allow_pickle, key)
    return export(name, format, Path(out), *options)


@private_files()
def push(
    search: PathLike,
    hub_id: str,
    *,
    format: Literal["checkpoint", "adapter"] = "checkpoint",
    candidate: str | None = None,
    private: bool = True,
    rank: int | None = None,
    save_modules: bool = False,
    allow_pickle: bool = False,
    watcher: "Watcher | None" = None,
) -> "PushReport":
    """Export one candidate of a search and upload it with its model card to a hub; nothing is asked before.

    Args:
        search: A search: its name (`name.stage` for a stage), run directory or spec file.
        hub_id: The model on the hub, `org/name`: of Hugging Face's, or of the one of $HF_ENDPOINT.
        format: Format to upload.
        candidate: Candidate or baseline; by default the promoted one.
        private: Make a new model private.
        rank: Maximum rank of an adapter; 32 by default.
        save_modules: Store changed weights that are not linear in full, next to an adapter's A and B.
        allow_pickle: Read pickled weights of models without safetensors.
        watcher: Receives progress and notes.

    Raises:
        LedgerError: There is no such search or candidate, or nothing was promoted and no candidate is named.
        InputError: The hub id, the hub or its token is wrong, or the models changed since the search.
        EvosearchError: The upload failed.
    """
    from evosearch.service.push import push

    options = (candidate, private, lambda plan: True, watching(watcher), rank, save_modules, allow_pickle)
    return push(os.fspath(search), hub_id, format, *options)


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
    return verify(Path(recipe), watching(watcher), scores, file, allow_pickle, public)


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
