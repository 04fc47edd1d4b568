"""`evosearch leaderboard NAME|SPEC`: candidates and baselines by score."""

from pathlib import Path

import typer

from evosearch.cli.completion import searches
from evosearch.cli.console import JSON, console, print_json


def command(
    search: str = typer.Argument(
        help="A search: its name (`name.stage` for a stage), run directory or spec.", autocompletion=searches
    ),
    top: int = typer.Option(20, min=1, help="Number of rows to show (--json prints all)."),
    page: Path | None = typer.Option(
        None, help="Also write the Pareto set of a search with several objectives to this HTML file."
    ),
    json: bool = JSON,
) -> None:
    """Show candidates and baselines by score on the search split, with their scores on the other splits."""
    from evosearch.cli.leaderboard_table import (
        leaderboard_table,
        show_answers,
        show_correlation,
        show_disclosure,
        show_finalists,
        show_numbers,
        show_pareto,
    )
    from evosearch.reporting.leaderboard import leaderboard, shown_rows
    from evosearch.reporting.pareto_table import pareto_rows, write_pareto_page
    from evosearch.spec.lookup import find

    run_dir = find(search)
    board = leaderboard(run_dir, with_runs=json)
    if page is not None:
        write_pareto_page(run_dir.name, board.rows, page)
    if json:
        print_json(board)
        return
    rows = shown_rows(board.rows, top)
    console.print(leaderboard_table(rows))
    if len(board.rows) > len(rows):
        console.print(f"{len(board.rows) - len(rows)} more: --top {len(board.rows)}", style="dim")
    show_numbers(console, board.rows)
    show_pareto(console, pareto_rows(board.rows))
    if page is not None:
        console.print(f"wrote {page}", highlight=False, soft_wrap=True)
    show_finalists(console, board.finalists, board.unchosen)
    show_correlation(console, board.rank_correlation)
    show_answers(console, board.answers)
    show_disclosure(console, board.test_openings, board.contamination_acknowledged)
