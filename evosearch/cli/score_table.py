"""Output of `evosearch score`: metrics by task, tokens, and further reported metrics."""

from typing import Any

from rich.console import Console
from rich.table import Table

from evosearch.cli.leaderboard_table import show_disclosure
from evosearch.cli.tables import make_table
from evosearch.evaluation.types import IN_LANGUAGE
from evosearch.reporting.columns import Column, number

Result = dict[str, Any]  # of `service.score`


def show_score(console: Console, result: Result) -> None:
    """Print the scores of a model or a recipe."""
    console.print(score_table(result))
    tokens = result["tokens"]
    work = f"{tokens['forwarded']:,} tokens run; {tokens['requested']:,} requested, {tokens['distinct']:,} distinct"
    console.print(work, highlight=False)
    for task, metrics in result["reported"].items():
        shown = (result["tasks"][task]["metric"], IN_LANGUAGE) if task in result["tasks"] else ()
        more = {name: value for name, value in metrics.items() if name not in shown}
        if more:
            each = (f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in more.items())
            console.print(f"{task} also: {', '.join(each)}", highlight=False)
    if "test_openings" in result:
        show_disclosure(console, result["test_openings"], result["contamination_acknowledged"])


def score_table(result: Result) -> Table:
    """Show each task's metric and, for tasks that require a language, the share of answers in it."""
    title = f"{result['suite']}, {result['split']}: score {result['score']:.2f}"
    spoken = {task: metrics[IN_LANGUAGE] for task, metrics in result["reported"].items() if IN_LANGUAGE in metrics}
    columns = [
        Column[tuple[str, Result]]("task", lambda row: row[0], left=True),
        Column("metric", lambda row: str(row[1]["metric"]), left=True),
        Column("value", lambda row: number(row[1]["value"], 4)),
        Column("stderr", lambda row: number(row[1]["stderr"], 4)),
        Column("items", lambda row: str(row[1]["n"])),
    ]
    if any(task in spoken for task in result["tasks"]):
        columns.append(Column("in language", lambda row: number(spoken.get(row[0]), 4)))
    return make_table(title, columns, list(result["tasks"].items()))
