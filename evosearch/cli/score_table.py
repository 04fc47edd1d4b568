"""Output of `evosearch score`: metrics by task, tokens, and further reported metrics."""

from rich.console import Console
from rich.table import Table

from evosearch.cli.leaderboard_table import show_disclosure
from evosearch.cli.tables import make_table
from evosearch.evaluation.types import IN_LANGUAGE
from evosearch.service.score import ScoreReport, score_columns


def show_score(console: Console, report: ScoreReport) -> None:
    """Print the scores of a model or a recipe."""
    console.print(score_table(report))
    tokens = report.tokens
    work = f"{tokens.forwarded:,} tokens run; {tokens.requested:,} requested, {tokens.distinct:,} distinct"
    console.print(work, highlight=False)
    for task, metrics in report.reported.items():
        shown = (report.tasks[task].metric, IN_LANGUAGE) if task in report.tasks else ()
        more = {name: value for name, value in metrics.items() if name not in shown}
        if more:
            each = (f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in more.items())
            console.print(f"{task} also: {', '.join(each)}", highlight=False)
    if report.test_openings is not None:
        show_disclosure(console, report.test_openings, bool(report.contamination_acknowledged))


def score_table(report: ScoreReport) -> Table:
    """Show each task's metric and, for tasks that require a language, the fraction of answers in it."""
    return make_table(report.title, score_columns(report), list(report.tasks.items()))
