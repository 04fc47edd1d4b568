"""`evosearch ui NAME|SPEC`: MLflow's web UI for a search."""

import os

import typer

from evosearch.cli.console import JSON, note, print_json
from evosearch.errors import TrackingError


def command(
    search: str = typer.Argument(help="A search: its name (`name.stage` for a stage), run directory or spec."),
    port: int = typer.Option(5000, min=1, max=65535, help="Port on 127.0.0.1."),
    json: bool = JSON,
) -> None:
    """Serve the leaderboard in MLflow's web UI, on this machine only."""
    from evosearch.spec.lookup import find
    from evosearch.tracking.mlflow import ui_command, ui_environment

    uri = find(search).tracking
    if uri.startswith("jsonl:"):
        raise TrackingError("tracking.uri", f"{uri} is a file of JSON lines, which MLflow cannot show")
    address = uri if uri.startswith("http") else f"http://127.0.0.1:{port}"
    if json:
        print_json(
            {
                "tracking_uri": uri,
                "address": address,
                "command": None if uri.startswith("http") else ui_command(uri, port),
            }
        )
        return
    if uri.startswith("http"):
        note(f"This search is tracked on a server: open {uri}")
        return
    arguments = ui_command(uri, port)
    note(f"MLflow on {address} (Ctrl-C stops it)")
    os.execvpe(arguments[0], arguments, {**os.environ, **ui_environment(uri)})  # noqa: S606 (no shell)
