"""`evosearch status`: every search in the folder of runs."""

from evosearch.cli.console import JSON, console, print_json


def command(json: bool = JSON) -> None:
    """List all searches: how far they are, what they found, who runs them."""
    from evosearch.cli.tables import status_table
    from evosearch.service.status import statuses

    rows = statuses()
    if json:
        print_json(rows)
    else:
        console.print(status_table(rows))
