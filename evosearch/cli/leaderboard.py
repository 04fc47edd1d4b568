"""`evosearch leaderboard NAME|SPEC`: candidates and baselines by score."""

from pathlib import Path

import typer

from evosearch.cli.console import JSON, console, print_json


def command(
    search: str = typer.Argument(help="A search: its name (of a stage `name.stage`), folder or spec."),
    top: int = typer.Option(20, min=1, help="How many rows to show (all of them with --json)."),
    page: Path | None = typer.Option(
        None, help="Write the Pareto set of a search with several objectives to this HTML file, too."
    ),
    json: bool = JSON,
) -> None:
    """Show candidates and baselines by score on the search split, and what they scored elsewhere."""
    from evosearch.cli.tables import leaderboard_table, show_pareto, show_shrinkage, show_test_set
    from evosearch.reporting.leaderboard import board, pareto_rows, write_pareto_page
    from evosearch.spec.run_dir import find

    places = find(search)
    found = board(places, with_runs=json)
    rows = found.rows
    if page is not None:
        write_pareto_page(places.name, rows, page)
    if json:
        print_json(rows)
    else:
        console.print(leaderboard_table(rows[:top]))
        if len(rows) > top:
            console.print(f"{len(rows) - top} more: --top {len(rows)}", style="dim")
        show_pareto(console, pareto_rows(rows))
        if page is not None:
            console.print(f"written: {page}", highlight=False, soft_wrap=True)
        show_shrinkage(console, found.finalists, found.unchosen)
        show_test_set(console, found.test_openings, found.contamination_acknowledged)
