"""`evosearch check SPEC|RECIPE|SUITE`: everything that could stop a run, in one list, before it starts."""

from pathlib import Path

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher


def command(
    file: Path = typer.Argument(help="A search spec, a recipe or a suite (YAML)."),
    trial: bool = typer.Option(True, help="Of a spec: materialize and score one candidate, for time and memory."),
    model: str | None = typer.Option(
        None, help="Of a suite: count its tokens by the tokenizer and config of this model (folder, hub id, zoo:name)."
    ),
    weights: bool = typer.Option(
        True, help="Of a spec: without them, only what it would cost, from its models' configs and tokenizers."
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> int:
    """Check a spec, a recipe or a suite: models, tasks, splits, tokens, ledger, and one candidate for time."""
    from evosearch.cli.tables import show_check
    from evosearch.preflight.check import check

    watching = watcher(json)
    try:
        result = check(file, trial, watching, allow_pickle, model, weights)
    finally:
        watching.close()
    if json:
        print_json(result)
    else:
        show_check(console, result)
    return 0 if result["ok"] else 2
