"""`evosearch check SPEC|RECIPE|SUITE`: list all problems of a file before a run."""

from contextlib import closing
from pathlib import Path

import typer

from evosearch.cli.completion import models
from evosearch.cli.console import ALLOW_PICKLE, ALLOW_UNRELATED, JSON, console, print_json, watcher


def command(
    file: Path = typer.Argument(help="A search spec, a recipe or a suite (YAML)."),
    dry_run: bool = typer.Option(True, help="For a spec: merge and score one candidate, to measure time and memory."),
    model: str | None = typer.Option(
        None,
        help="For a suite: count its tokens with the tokenizer of this model (folder, hub id, zoo:name).",
        autocompletion=models,
    ),
    weights: bool = typer.Option(
        True, help="For a spec: --no-weights checks what configs and tokenizers show, and estimates its cost."
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    allow_unrelated: bool = ALLOW_UNRELATED,
    json: bool = JSON,
) -> int:
    """Check a spec, a recipe or a suite: models, tasks, splits, tokens, ledger; score one candidate to measure time.

    The code of the suite's tasks is run, as in a search: check only suites whose folder you trust.
    """
    from evosearch.cli.check_report import show_check
    from evosearch.preflight.check import check

    with closing(watcher(json)) as watching:
        result = check(file, dry_run, watching, allow_pickle, model, weights, allow_unrelated)
    if json:
        print_json(result)
    else:
        show_check(console, result)
    return 0 if result.ok else 2
