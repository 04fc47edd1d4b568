"""`evosearch score MODEL|RECIPE SUITE --split`: what a model or a recipe scores."""

from pathlib import Path
from typing import Any

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher


def command(
    model: str = typer.Argument(help="A model (folder, hub id, zoo:name) or a recipe (YAML)."),
    suite: Path = typer.Argument(help="A suite (YAML)."),
    split: str = typer.Option("search", help="search, validation or test. Reading test is recorded."),
    items: Path | None = typer.Option(None, help="Write one JSON line an item to this file."),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Score a checkpoint or a recipe on one split of a suite."""
    from evosearch.cli.tables import score_table, show_test_set
    from evosearch.service.score import score

    watching = watcher(json)
    try:
        result = score(model, suite, split, items, watching, allow_pickle)
    finally:
        watching.close()
    if json:
        print_json(result)
    else:
        console.print(score_table(result))
        tokens = result["tokens"]
        work = f"{tokens['forwarded']:,} tokens run; {tokens['requested']:,} requested, {tokens['distinct']:,} distinct"
        console.print(work, highlight=False)
        for task, metrics in result["reported"].items():
            beside = {name: value for name, value in metrics.items() if name != _scoring(result, task)}
            if beside:
                values = ", ".join(f"{name} {_number(value)}" for name, value in beside.items())
                console.print(f"{task} also: {values}", highlight=False)
        if "test_openings" in result:
            show_test_set(console, result["test_openings"], result["contamination_acknowledged"])


def _scoring(result: dict[str, Any], task: str) -> str | None:
    """The metric by which a task scores, which the table has."""
    return str(result["tasks"][task]["metric"]) if task in result["tasks"] else None


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
