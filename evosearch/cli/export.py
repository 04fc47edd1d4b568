"""`evosearch export NAME --format ... -o PATH`: a candidate's recipe, for anyone to rebuild."""

from enum import Enum
from pathlib import Path

import typer

from evosearch.cli.console import JSON, console, print_json, watcher


class Format(str, Enum):
    """What `export` writes."""

    RECIPE = "recipe"
    MERGEKIT = "mergekit"
    CHECKPOINT = "checkpoint"


def command(
    search: str = typer.Argument(help="The name of a search, or its spec."),
    format: Format = typer.Option(Format.RECIPE, "--format", help="recipe, mergekit or checkpoint."),
    out: Path = typer.Option(..., "--output", "-o", help="The file (or, for a checkpoint, the folder) to write."),
    candidate: str | None = typer.Option(None, help="Any candidate or control; the promoted one by default."),
    overwrite: bool = typer.Option(False, help="Replace an existing file."),
    json: bool = JSON,
) -> None:
    """Export the promoted candidate, or any other, as a recipe, as mergekit YAML, or as a checkpoint."""
    from evosearch.service.export import export

    watching = watcher(json)
    try:
        result = export(search, format.value, out, candidate, overwrite, watching)
    finally:
        watching.close()
    if json:
        print_json(result)
    else:
        console.print(f"{result['candidate']} as {result['format']}: {result['out']}", highlight=False)
