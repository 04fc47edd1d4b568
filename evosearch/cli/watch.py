"""`evosearch watch NAME|SPEC`: a dashboard of a search in the terminal, live from its ledger."""

import time
from contextlib import suppress

import typer
from rich.live import Live

from evosearch.cli.console import console


def command(
    search: str = typer.Argument(help="A search: its name (`name.stage` for a stage), run directory or spec."),
    every: float = typer.Option(5.0, min=0.5, help="Seconds between two looks at the ledger."),
    once: bool = typer.Option(False, "--once", help="Show the present state and end, as when output is no terminal."),
) -> None:
    """Watch a search: progress, verdict, best fitness, leaderboard, guards, time and failures."""
    from evosearch.cli.watch_panels import dashboard
    from evosearch.reporting.watched import Watched
    from evosearch.search.ledger.ledger import Ledger
    from evosearch.setup.loading import read_search
    from evosearch.spec.lookup import find

    run_dir = find(search)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, _ = read_search(ledger, run_dir)
        watched = Watched(ledger, search_id)
        facts = watched.refresh()
        if not once and console.is_terminal:
            with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
                while not watched.ended:
                    live.update(dashboard(watched, facts), refresh=True)
                    time.sleep(every)
                    facts = watched.refresh()
        console.print(dashboard(watched, facts))
