"""`evosearch push NAME HUB_ID`: upload a candidate as a checkpoint or an adapter."""

import sys
from enum import Enum
from typing import TYPE_CHECKING

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, note, print_json, watcher
from evosearch.errors import InputError

if TYPE_CHECKING:
    from evosearch.service.push import PushPlan


class Format(str, Enum):
    """Formats of `evosearch push`."""

    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"


def command(
    search: str = typer.Argument(help="A search: its name (`name.stage` for a stage), run directory or spec."),
    hub_id: str = typer.Argument(help="The model on the hub: org/name."),
    format: Format = typer.Option(Format.CHECKPOINT, "--format", help="checkpoint or adapter."),
    candidate: str | None = typer.Option(None, help="Candidate or baseline to push; the promoted one by default."),
    public: bool = typer.Option(False, "--public", help="Make a new model public; it is private by default."),
    yes: bool = typer.Option(False, "--yes", help="Upload without asking."),
    rank: int | None = typer.Option(None, help="Maximum rank of an adapter; 32 by default."),
    save_modules: bool = typer.Option(
        False, "--save-modules", help="Store weights that a LoRA cannot change in full, next to the adapter."
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Export a candidate and upload it with its model card to a hub: Hugging Face's, or the one of $HF_ENDPOINT."""
    from evosearch.service.push import push

    if not yes and (json or not sys.stdin.isatty()):
        what = "an upload needs a confirmation, and nobody can be asked here"
        raise InputError("--yes", what, next="Pass --yes")

    def confirm(plan: "PushPlan") -> bool:
        show(plan)
        return yes or typer.confirm("Upload?", err=True)

    def show(plan: "PushPlan") -> None:
        size = sum(plan.files.values()) / 2**20
        kind = "adds a commit to" if plan.exists else f"makes the {'private' if plan.private else 'public'} model"
        note(f"{len(plan.files)} files, {size:,.1f} MiB: {kind} {plan.url}")
        for text in plan.warnings:
            note(f"licence: {text}")

    watching = watcher(json)
    try:
        options = (candidate, not public, confirm, watching, rank, save_modules, allow_pickle)
        report = push(search, hub_id, format.value, *options)
    finally:
        watching.close()
    if json:
        print_json(report)
    else:
        console.print(f"{report.candidate} of {report.search}: {report.url}, commit {report.commit}", highlight=False)
