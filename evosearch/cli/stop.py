"""`evosearch stop NAME`: end a search so that it can go on later, here or on a cluster."""

import typer

from evosearch.cli.console import ADDRESS, JSON, console, print_json


def command(
    search: str = typer.Argument(help="A search by its name; on a cluster also a job by its id."),
    address: str | None = ADDRESS,
    json: bool = JSON,
) -> None:
    """Stop a search: what it recorded stays, and the same run, or submit, continues it."""
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
        told = f"{row['name']} does not run: {row['state']}"
    elif row["state"] == "withdrawn":
        told = f"{row['name']} is withdrawn, and will not start"
    else:
        told = f"{row['name']}: {row['state']}{progress}"
    console.print(told, highlight=False, soft_wrap=True)
    if not row["clean"]:
        console.print(
            "it was killed before it could say so itself; what it recorded is kept all the same", style="yellow"
        )
