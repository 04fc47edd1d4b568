"""`evosearch status`: all searches in the runs folder, in a ledger, and on a cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from evosearch.cli.console import ADDRESS, JSON, console, print_json

if TYPE_CHECKING:
    from evosearch.reporting.status import StatusRow


def command(
    address: str | None = ADDRESS,
    ledger: str | None = typer.Option(
        None, help="List the searches of this ledger (postgresql://…, sqlite:///FILE) instead of the runs folder."
    ),
    json: bool = JSON,
) -> None:
    """List all searches with their progress, best fitness and promoted model."""
    from evosearch.jobs.queue import rows
    from evosearch.origins import Secret, name_by_hand
    from evosearch.redaction import hidden
    from evosearch.reporting.status import of_ledger, statuses
    from evosearch.spec.run_dir import runs_folder

    if ledger:
        name_by_hand(Secret.POSTGRES, ledger)
    here = of_ledger(ledger) if ledger else statuses()
    there = rows(address) if address else []
    if json:
        print_json([*here, *there])
        return
    if not here and not address:
        where = f"in {hidden(ledger)}" if ledger else f"in {runs_folder()}"
        console.print(f"no searches {where} yet: start one with evosearch run SPEC", highlight=False, soft_wrap=True)
    elif here or not address:
        _show(here, "Searches" if ledger is None else f"Searches in {hidden(ledger)}")
    if address:
        _show(there, f"Searches on {address}")


def _show(rows: "Sequence[StatusRow]", title: str) -> None:
    from evosearch.cli.status_table import status_table, unreadable

    console.print(status_table(rows, title))
    for text in unreadable(rows):
        console.print(text, highlight=False, soft_wrap=True)
