"""`evosearch diff BASE MODEL -o DIR`: save a task vector."""

from contextlib import closing
from pathlib import Path

import typer

from evosearch.cli.completion import files_and_models, models
from evosearch.cli.console import ALLOW_PICKLE, ALLOW_UNRELATED, JSON, console, print_json, watcher


def command(
    base: str = typer.Argument(help="The base: a folder, a hub id or zoo:name.", autocompletion=models),
    model: str = typer.Argument(
        help="A fine-tune of it: a model, model+adapter, or a recipe (YAML).", autocompletion=files_and_models
    ),
    out: Path = typer.Option(..., "--output", "-o", help="Folder to write; it must not exist, or be empty."),
    allow_pickle: bool = ALLOW_PICKLE,
    allow_unrelated: bool = ALLOW_UNRELATED,
    json: bool = JSON,
) -> None:
    """Save the task vector of a model, MODEL − BASE, as a folder that recipes take as a model."""
    from evosearch.service.diff import diff

    with closing(watcher(json)) as watching:
        report = diff(base, model, out, watching, allow_pickle, allow_unrelated)
    if json:
        print_json(report)
        return
    exact = "exact" if not report.inexact else f"{report.inexact:,} weights rounded, by at most {report.error:.1e}"
    console.print(
        f"{report.out}: {report.tensors} tensors, {report.unchanged} unchanged, {report.bytes / 2**20:,.0f} MiB, "
        f"relative change {report.relative_change:.3g}, {exact}, base {report.base_sha256[:12]}",
        highlight=False,
    )
    for label, names in (("base", report.only_in_base), ("model", report.only_in_model)):
        for name in names:
            console.print(f"only in the {label}: {name}", highlight=False)
    for name in report.other_shape:
        console.print(f"other shape: {name}", highlight=False)
