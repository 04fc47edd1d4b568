"""`evosearch export NAME --format ... -o PATH`: a candidate's recipe, for anyone to rebuild."""

from enum import Enum
from pathlib import Path
from typing import Any

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher


class Format(str, Enum):
    """What `export` writes."""

    RECIPE = "recipe"
    MERGEKIT = "mergekit"
    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"


def command(
    search: str = typer.Argument(help="A search: its name (of a stage `name.stage`), folder or spec."),
    format: Format = typer.Option(Format.RECIPE, "--format", help="recipe, mergekit, checkpoint or adapter."),
    out: Path = typer.Option(..., "--output", "-o", help="The file (for weights, the folder) to write."),
    candidate: str | None = typer.Option(None, help="Any candidate or baseline; the promoted one by default."),
    overwrite: bool = typer.Option(False, help="Replace an existing file."),
    rank: int | None = typer.Option(None, help="Of an adapter, at most; 32 by default."),
    save_modules: bool = typer.Option(
        False,
        "--save-modules",
        help="With an adapter, store whole what a LoRA does not reach: norms, embeddings, biases.",
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Export the promoted candidate, or any other, as a recipe, as mergekit YAML, as a checkpoint, or as a LoRA."""
    from evosearch.cli.tables import show_test_set
    from evosearch.reporting.export import export

    watching = watcher(json)
    try:
        result = export(search, format.value, out, candidate, overwrite, watching, rank, save_modules, allow_pickle)
    finally:
        watching.close()
    if json:
        print_json(result)
    else:
        console.print(f"{result['candidate']} as {result['format']}: {result['out']}", highlight=False)
        show_test_set(console, result["test_openings"], result["contamination_acknowledged"])
        if "adapter" in result:
            console.print(_lost(result["adapter"]), highlight=False)


def _lost(adapter: dict[str, Any]) -> str:
    """How far the adapter is from the merge, and where most."""
    saved = f"; {len(adapter['saved'])} tensors stored whole" if adapter["saved"] else ""
    if not adapter["tensors"]:
        return f"an adapter of {adapter['base']}{saved}"
    worst, entry = max(adapter["tensors"].items(), key=lambda item: float(item[1]["error"]))
    lost = f"it misses {adapter['error']:.2%} of the change, at most {entry['error']:.2%} ({worst})"
    return f"an adapter of {adapter['base']}: {lost}{saved}"
