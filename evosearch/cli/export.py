"""`evosearch export NAME --format ... -o PATH`: a candidate as a recipe, a checkpoint or an adapter."""

from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from evosearch.cli.completion import searches
from evosearch.cli.console import ALLOW_PICKLE, JSON, console, note, print_json, watcher

if TYPE_CHECKING:
    from evosearch.reporting.export import AdapterSummary


class Format(str, Enum):
    """Formats of `evosearch export`."""

    RECIPE = "recipe"
    MERGEKIT = "mergekit"
    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"


def command(
    search: str = typer.Argument(
        help="A search: its name (`name.stage` for a stage), run directory or spec.", autocompletion=searches
    ),
    format: Format = typer.Option(Format.RECIPE, "--format", help="recipe, mergekit, checkpoint or adapter."),
    out: Path = typer.Option(..., "--output", "-o", help="File to write (a folder for a checkpoint or an adapter)."),
    candidate: str | None = typer.Option(None, help="Candidate or baseline to export; the promoted one by default."),
    overwrite: bool = typer.Option(False, help="Replace an existing file."),
    rank: int | None = typer.Option(None, help="Maximum rank of an adapter; 32 by default."),
    save_modules: bool = typer.Option(
        False,
        "--save-modules",
        help="Store weights that a LoRA cannot change (norms, embeddings, biases) in full, next to the adapter.",
    ),
    sign: Path | None = typer.Option(
        None, "--sign", metavar="KEY", help="Private key (PEM) that signs an in-toto attestation next to the recipe."
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Export the promoted or any other candidate as a recipe, mergekit YAML, a checkpoint or a LoRA adapter."""
    from evosearch.cli.leaderboard_table import show_disclosure
    from evosearch.reporting.export import export

    with closing(watcher(json)) as watching:
        result = export(
            search, format.value, out, candidate, overwrite, watching, rank, save_modules, allow_pickle, sign
        )
    if json:
        print_json(result)
    else:
        console.print(f"{result.candidate} as {result.format}: {result.out}", highlight=False)
        show_disclosure(console, result.test_openings, result.contamination_acknowledged)
        if result.adapter:
            console.print(_loss(result.adapter), highlight=False)
        for text in result.warnings:
            note(f"licence: {text}")


def _loss(adapter: "AdapterSummary") -> str:
    """Describe the adapter's relative error, over all tensors and for the worst one."""
    saved = f"; {len(adapter.saved)} tensors stored in full" if adapter.saved else ""
    if not adapter.tensors:
        return f"an adapter of {adapter.base}{saved}"
    worst, loss = max(adapter.tensors.items(), key=lambda item: item[1].error)
    lost = f"relative error {adapter.error:.2%} of the weight changes, at most {loss.error:.2%} ({worst})"
    return f"an adapter of {adapter.base}: {lost}{saved}"
