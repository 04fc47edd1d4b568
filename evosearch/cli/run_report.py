"""Output of `evosearch run`: leaderboard, test table, the gate's decision and the exported files."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evosearch.cli.leaderboard_table import (
    leaderboard_table,
    show_answers,
    show_correlation,
    show_disclosure,
    show_finalists,
    show_numbers,
    show_pareto,
)
from evosearch.cli.tables import make_table
from evosearch.reporting.leaderboard import shown_rows
from evosearch.reporting.report import STAGES_TITLE, TOP, RunReport, StageRow, stage_columns
from evosearch.reporting.test_table import TEST_TITLE, TestRow, test_columns
from evosearch.tracking.mirror import UP_TO_DATE


def show_run(console: Console, report: RunReport) -> None:
    """Print the result of a run."""
    if report.stages:
        console.print(stages_table(report.stages))
    console.print(leaderboard_table(shown_rows(report.leaderboard, TOP)))
    show_numbers(console, report.leaderboard)
    show_pareto(console, report.pareto)
    show_finalists(console, report.finalists, report.unchosen)
    show_correlation(console, report.rank_correlation)
    show_answers(console, report.answers)
    if report.test:
        console.print(test_table(report.test))
    if report.gate:
        for reason in report.gate.reasons:
            console.print(reason, highlight=False)
        if not report.gate.unverified:
            show_disclosure(console, report.test_openings, report.contamination_acknowledged)
    for fmt, path in report.exported.items():
        console.print(f"exported {fmt}: {path}", highlight=False, soft_wrap=True)
    counts = report.candidates
    console.print(
        f"{counts.scored} candidates scored in {report.seconds:.0f} s ({counts.failed} failed, "
        f"{counts.resumed} from an earlier session); stopped by: {report.stopped}",
        highlight=False,
    )
    if report.tracking != UP_TO_DATE:
        console.print(report.tracking, style="yellow")
    _show_where(console, report)


def _show_where(console: Console, report: RunReport) -> None:
    """Print the address of the leaderboard; for a local store, with the command that serves it."""
    served = report.tracking_uri.startswith("http")
    if not served:
        console.print(f"See it in MLflow:  {_program()} ui {report.name}", style="bold", highlight=False)
    if report.mlflow:
        then = "Leaderboard in MLflow:" if served else "which opens"
        console.print(f"{then} {report.mlflow}", highlight=False, soft_wrap=True)


def stages_table(stages: Sequence[StageRow]) -> Table:
    """Show every stage with its winner; the last stage's winner is promoted."""
    return make_table(STAGES_TITLE, stage_columns(), stages)


def test_table(rows: Sequence[TestRow]) -> Table:
    """Show the winner and the models it was compared with on the test split."""
    return make_table(TEST_TITLE, test_columns(rows), rows)


def _program() -> str:
    """Return how this program was called, so that the printed command can be copied."""
    called = Path(sys.argv[0])
    if shutil.which("evosearch") or not called.is_file():
        return "evosearch"
    here = Path.cwd()
    return str(called.relative_to(here)) if called.is_relative_to(here) else str(called)
