"""`evosearch run SPEC`: search, promote, export; continues by itself what was begun."""

from pathlib import Path

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher


def command(
    spec: Path = typer.Argument(help="A search spec (YAML), of one search or of stages."),
    continue_from_best: bool = typer.Option(
        False, help="Where a recorded search cannot be replayed exactly, go on from its best candidate."
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> int:
    """Run a search to its promoted, exported winner. The same command continues an interrupted one."""
    from evosearch.cli.tables import show_run
    from evosearch.service.run import run

    watching = watcher(json)
    try:
        report = run(spec, watching, continue_from_best, allow_pickle)
    finally:
        watching.close()
    if json:
        print_json(report.to_json())
    else:
        show_run(console, report)
    return 0 if report.promoted else 3
