"""`evosearch check SPEC|RECIPE`: everything that could stop a run, in one list, before it starts."""

from pathlib import Path

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher


def command(
    file: Path = typer.Argument(help="A search spec or a recipe (YAML)."),
    trial: bool = typer.Option(True, help="Materialize and score one candidate, for time and memory."),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> int:
    """Check a spec or a recipe: models, suite, splits, ledger, and one candidate for time."""
    from evosearch.cli.tables import show_check
    from evosearch.service.check import check

    watching = watcher(json)
    try:
        result = check(file, trial, watching, allow_pickle)
    finally:
        watching.close()
    if json:
        print_json(result)
    else:
        show_check(console, result)
    return 0 if result["ok"] else 2
