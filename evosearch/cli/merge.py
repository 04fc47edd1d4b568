"""`evosearch merge RECIPE OUT`: write a merged checkpoint."""

from pathlib import Path

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher


def command(
    recipe: Path = typer.Argument(help="A recipe (YAML)."),
    out: Path = typer.Argument(help="The folder to write; it must be empty or not exist."),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Merge the models of a recipe and write an ordinary checkpoint."""
    from evosearch.service.merge import merge

    watching = watcher(json)
    try:
        result = merge(recipe, out, watching, allow_pickle)
    finally:
        watching.close()
    if json:
        print_json(result)
    else:
        console.print(
            f"{result['out']}: {result['tensors']} tensors, {result['bytes'] / 2**20:,.0f} MiB "
            f"in {result['seconds']['total']:.1f} s, recipe {result['recipe_id'][:12]}, "
            f"weights {result['weights_sha256'][:12]}",
            highlight=False,
        )
