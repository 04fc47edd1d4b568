"""`evosearch import FILE`: a search of another tool as a search spec."""

from contextlib import closing
from pathlib import Path

import typer

from evosearch.cli.console import JSON, console, print_json, watcher


def command(
    file: Path = typer.Argument(help="A search of mergekit-evolve, mergenetic or auto-merge-llm (YAML)."),
    out: Path | None = typer.Option(
        None, "--output", "-o", help="The spec to write; the suite gets its name with -suite. Neither may exist."
    ),
    include: Path | None = typer.Option(None, help="Folder of lm-eval task files, an option of the other tool."),
    json: bool = JSON,
) -> None:
    """Import a search of another tool.

    A search of mergekit-evolve, mergenetic or auto-merge-llm is written as a spec with its suite. What changes, and
    why, is printed, and is at the top of the spec.
    """
    from evosearch.service.import_spec import import_spec

    with closing(watcher(json)) as watching:
        report = import_spec(file, out, watching, include)
    if json:
        print_json(report)
        return
    for text in report.changes:
        console.print(f"- {text}", highlight=False, soft_wrap=True)
    console.print(f"{report.out}, {report.suite}: a search for {report.tool}", highlight=False, soft_wrap=True)
    console.print(f"evosearch check {report.out}", style="bold", highlight=False, soft_wrap=True)
