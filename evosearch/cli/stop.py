"""`evosearch stop NAME`: stop a search, here or on a cluster, so that it can be resumed."""

import typer

from evosearch.cli.completion import searches
from evosearch.cli.console import ADDRESS, JSON, console, print_json


def command(
    search: str = typer.Argument(help="Name of a search; on a cluster also the id of a job.", autocompletion=searches),
    address: str | None = ADDRESS,
    json: bool = JSON,
) -> None:
    """Stop a search. Its records are kept, and the same run or submit resumes it."""
    if address:
        from evosearch.jobs.queue import stop

        row = stop(address, search)
    else:
        from evosearch.jobs.stop import stop_here

        row = stop_here(search)
    if json:
        print_json(row)
        return
    progress = f" after {row['done']} of {row['total'] or '?'} candidates" if row.get("done") is not None else ""
    if row["was"] == row["state"]:
        text = f"{row['name']} is not running: {row['state']}"
    elif row["state"] == "withdrawn":
        text = f"{row['name']} was withdrawn and will not start"
    else:
        text = f"{row['name']}: {row['state']}{progress}"
    console.print(text, highlight=False, soft_wrap=True)
    if not row["clean"]:
        console.print("it was killed before it could record its end; earlier records are kept", style="yellow")
