"""`evosearch ui NAME|SPEC`: MLflow's web UI for a search."""

from contextlib import suppress

import typer

from evosearch.cli.completion import searches
from evosearch.cli.console import JSON, note, print_json
from evosearch.errors import TrackingError
from evosearch.redaction import hidden


def command(
    search: str = typer.Argument(
        help="A search: its name (`name.stage` for a stage), run directory or spec.", autocompletion=searches
    ),
    port: int = typer.Option(5000, min=1, max=65535, help="Port on 127.0.0.1."),
    json: bool = JSON,
) -> None:
    """Serve the leaderboard in MLflow's web UI, on this machine only, with a random account."""
    from evosearch.setup.trackers import leaderboard_of_search
    from evosearch.spec.lookup import find
    from evosearch.tracking.ui import serve, ui_command

    run_dir = find(search)
    uri = run_dir.tracking
    if uri.startswith("jsonl:"):
        raise TrackingError("tracking.uri", f"{uri} is a file of JSON lines, which MLflow cannot show")
    address = hidden(uri) if uri.startswith("http") else f"http://127.0.0.1:{port}"
    leaderboard = address
    if not json or uri.startswith("sqlite"):  # others may not answer, and a database server would get MLflow's tables
        with suppress(TrackingError):
            leaderboard = leaderboard_of_search(run_dir, port) or address
    if json:  # describes a server instead of starting one, whose account would be lost
        command = None if uri.startswith("http") else ui_command(uri, port, accounts=True)
        print_json({"tracking_uri": uri, "address": address, "leaderboard": leaderboard, "command": command})
        return
    if uri.startswith("http"):
        note(f"This search is tracked on a server: open {leaderboard}")
        return

    def started(user: str, password: str) -> None:
        note(f"MLflow on {address} (Ctrl-C stops it). User: {user}, password: {password}")
        note(f"Leaderboard: {leaderboard}")

    with suppress(KeyboardInterrupt):
        if code := serve(uri, port, started):
            raise typer.Exit(code)
