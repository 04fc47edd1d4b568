"""`evosearch merge RECIPE OUT`: write a merged checkpoint."""

from contextlib import closing
from pathlib import Path

import typer

from evosearch.cli.console import ALLOW_PICKLE, ALLOW_UNRELATED, JSON, console, print_json, watcher


def command(
    recipe: Path = typer.Argument(help="A recipe (YAML)."),
    out: Path = typer.Argument(help="Folder to write; it must not exist, or be empty."),
    allow_pickle: bool = ALLOW_PICKLE,
    allow_unrelated: bool = ALLOW_UNRELATED,
    json: bool = JSON,
) -> None:
    """Merge the models of a recipe and write an ordinary checkpoint."""
    from evosearch.service.merge import merge

    with closing(watcher(json)) as watching:
        report = merge(recipe, out, watching, allow_pickle, allow_unrelated)
    if json:
        print_json(report)
    else:
        console.print(
            f"{report.out}: {report.tensors} tensors, {report.bytes / 2**20:,.0f} MiB "
            f"in {report.seconds['total']:.1f} s, recipe {report.recipe_id[:12]}, "
            f"weights {report.weights_sha256[:12]}",
            highlight=False,
        )
