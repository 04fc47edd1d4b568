"""`evosearch init MODEL...`: write a first search spec for models."""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from evosearch.cli.completion import models as complete_models
from evosearch.cli.console import ALLOW_PICKLE, ALLOW_UNRELATED, JSON, console, print_json, stderr, watcher


def command(
    models: list[str] = typer.Argument(
        help="Fine-tuned models or adapters: folders, hub ids, MODEL+ADAPTER.",
        autocompletion=complete_models,
    ),
    suite: str | None = typer.Option(None, help="The suite: a YAML file, or the name of one in evals/."),
    base: str | None = typer.Option(
        None, help="Their base model. Found out without it, as far as possible.", autocompletion=complete_models
    ),
    out: Path = typer.Option(Path("search.yaml"), "--output", "-o", help="File to write; it must not exist."),
    allow_pickle: bool = ALLOW_PICKLE,
    allow_unrelated: bool = ALLOW_UNRELATED,
    json: bool = JSON,
) -> None:
    """Look at models, and write a commented search spec for them. On a terminal it asks what it cannot find out."""
    from evosearch.service.init import init

    interactive = not json and sys.stdin.isatty() and stderr.is_terminal
    watching = watcher(json)

    def ask(question: str, answers: Sequence[str]) -> str:
        watching.close()  # a bar would be drawn over the question
        return _ask(question, answers)

    try:
        asking = ask if interactive else None
        report = init(models, out, watching, base, suite, asking, allow_pickle, allow_unrelated)
    finally:
        watching.close()
    if json:
        print_json(report)
        return
    for text in report.notes:
        console.print(text, highlight=False, soft_wrap=True)
    console.print(f"{report.out}: {report.method}, {report.dimensions} numbers, {report.optimizer}", highlight=False)
    console.print(f"evosearch check {report.out}", style="bold", highlight=False, soft_wrap=True)


def _ask(question: str, answers: Sequence[str]) -> str:
    """Ask on the terminal until one of the numbered answers is chosen."""
    stderr.print(question, highlight=False)
    for number, answer in enumerate(answers, start=1):
        stderr.print(f"  {number}  {answer}", highlight=False)
    while True:
        chosen: int = typer.prompt("Number", type=int, err=True)
        if 1 <= chosen <= len(answers):
            return answers[chosen - 1]
