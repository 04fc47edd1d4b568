"""`evosearch analyze RECIPE|MODEL…`: compare task vectors, or score merges of the models."""

from contextlib import closing
from pathlib import Path

import typer

from evosearch.cli.completion import files_and_models
from evosearch.cli.completion import models as complete_models
from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher


def command(
    models: list[str] = typer.Argument(
        help="A recipe (YAML), or models (folder, hub id, zoo:name, model+adapter).", autocompletion=files_and_models
    ),
    base: str | None = typer.Option(
        None,
        help="Base that changes are measured from; default: that of the recipe.",
        autocompletion=complete_models,
    ),
    leave_one_out: bool = typer.Option(False, "--leave-one-out", help="Score a recipe's merge without each parent."),
    path: bool = typer.Option(
        False, "--path", help="Score merges on the lines between two models, and from the base to each."
    ),
    calibration: bool = typer.Option(
        False, "--calibration", help="Calibration of choices (ECE, Brier) of base, parents and merge."
    ),
    suite: Path | None = typer.Option(None, help="Suite (YAML) for the last three options."),
    split: str = typer.Option("search", help="search or validation."),
    points: int = typer.Option(11, help="Number of merges on a path, with both ends."),
    top: int = typer.Option(8, help="Number of singular vectors whose subspaces are compared."),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Compare the task vectors of models by layer and module, or score merges of them on a suite."""
    from evosearch.cli.analyze_tables import show_analysis
    from evosearch.service.analyze import AnalyzeOptions, analyze

    options = AnalyzeOptions(
        base=base,
        leave_one_out=leave_one_out,
        path=path,
        calibration=calibration,
        suite=suite,
        split=split,
        points=points,
        top=top,
        allow_pickle=allow_pickle,
    )
    with closing(watcher(json)) as watching:
        report = analyze(models, options, watching)
    if json:
        print_json(report)
    else:
        show_analysis(console, report)
