"""`evosearch report NAME|SPEC`: the report of a search as one HTML page."""

import webbrowser
from pathlib import Path

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, note, print_json, watcher


def command(
    search: str = typer.Argument(help="A search: its name (`name.stage` for a stage), run directory or spec."),
    out: Path | None = typer.Option(
        None, "--output", "-o", help="File to write; by default report.html in the search's folder."
    ),
    open_page: bool = typer.Option(False, "--open", help="Open the page in a browser."),
    analyze: bool = typer.Option(
        False, "--analyze", help="Also open the models: norms, cosines and sign conflicts of their changes."
    ),
    losses: bool = typer.Option(
        False, "--losses", help="Also score merges on the lines from base to winner and between parents."
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Write the report of a search as one HTML page that needs no network, from its ledger."""
    from evosearch.service.report_page import write_report

    watching = watcher(json)
    try:
        result = write_report(search, out, watching, analyze, losses, allow_pickle)
    finally:
        watching.close()
    if open_page and not webbrowser.open(Path(result.out).absolute().as_uri()):
        note(f"no browser was found: open {result.out}")
    if json:
        print_json(result)
    else:
        console.print(f"wrote {result.out}", highlight=False, soft_wrap=True)
