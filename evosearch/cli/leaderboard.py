"""`evosearch leaderboard NAME|SPEC`: candidates and controls by score."""

import typer

from evosearch.cli.console import JSON, console, print_json


def command(
    search: str = typer.Argument(help="The name of a search, or its spec."),
    top: int = typer.Option(20, min=1, help="How many rows to show (all of them with --json)."),
    json: bool = JSON,
) -> None:
    """Show candidates and controls by score on the search split, and what they scored elsewhere."""
    from evosearch.cli.tables import leaderboard_table, show_shrinkage, show_test_set
    from evosearch.service.leaderboard import board
    from evosearch.service.paths import find

    found = board(find(search), with_runs=json)
    rows = found.rows
    if json:
        print_json(rows)
    else:
        console.print(leaderboard_table(rows[:top]))
        if len(rows) > top:
            console.print(f"{len(rows) - top} more: --top {len(rows)}", style="dim")
        show_shrinkage(console, found.finalists, found.unchosen)
        show_test_set(console, found.test_openings, found.contamination_acknowledged)
