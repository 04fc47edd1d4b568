"""`evosearch score MODEL|RECIPE SUITE --split`: score a model or a recipe."""

from contextlib import closing
from pathlib import Path

import typer

from evosearch.cli.completion import files_and_models
from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher


def command(
    model: str = typer.Argument(
        help="A model (folder, hub id, zoo:name) or a recipe (YAML).", autocompletion=files_and_models
    ),
    suite: Path = typer.Argument(help="A suite (YAML)."),
    split: str = typer.Option("search", help="search, validation or test. Scoring on test is recorded."),
    items: Path | None = typer.Option(None, help="Write one JSON line per item to this file."),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Score a model or a recipe on one split of a suite."""
    from evosearch.cli.score_table import show_score
    from evosearch.service.score import score

    with closing(watcher(json)) as watching:
        result = score(model, suite, split, items, watching, allow_pickle)
    if json:
        print_json(result)
    else:
        show_score(console, result)
