"""`evosearch cluster up|status|down`: a development cluster on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from evosearch.cli.console import JSON, console, note, print_json
from evosearch.durations import clock
from evosearch.errors import SearchError

if TYPE_CHECKING:
    from evosearch.devcluster.cluster import PartStatus

FOLDER = typer.Option(
    Path("runs/cluster"), "--folder", metavar="DIR", help="Folder of the cluster's data, including its secrets."
)

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Run PostgreSQL, an MLflow server with accounts and Ray nodes on this machine, all on loopback."""


@app.command()
def up(
    nodes: int | None = typer.Option(None, min=1, help="Number of worker nodes. Default: unchanged; 2 at first."),
    cpus_per_node: int | None = typer.Option(
        None, min=1, help="CPUs of each node. Default: unchanged; an equal share at first."
    ),
    gpus_per_node: int | None = typer.Option(
        None, min=0, help="GPUs reserved for each node. Default: unchanged; none at first."
    ),
    folder: Path = FOLDER,
    json: bool = JSON,
) -> None:
    """Start the processes that are not running, and print how to use the cluster."""
    from evosearch.devcluster.cluster import Cluster
    from evosearch.devcluster.process_environment import tracking

    cluster = Cluster(folder, note)
    with _errors():
        cluster.up(nodes, cpus_per_node, gpus_per_node)
    environment = os.path.relpath(cluster.places.environment)
    ledger, server = cluster.ledger(), tracking(cluster.state)
    if json:
        print_json(
            {"folder": str(cluster.places.folder), "environment": environment, "ledger": ledger, "tracking": server}
        )
        return
    lines = (
        "ready. In a shell:",
        f"    . {environment}",
        "In a spec:",
        f"    ledger: {ledger}",
        f'    tracking: {{uri: "{server}"}}',
        "    workers: {count: auto, threads: 1}",
        "Then: evosearch submit SPEC",
    )
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


@app.command()
def status(folder: Path = FOLDER, json: bool = JSON) -> int:
    """Show each process with its address, start time and problem. Exit code 1 if any is unhealthy."""
    from evosearch.devcluster.cluster import Cluster

    with _errors():
        parts = Cluster(folder).status()
    if json:
        print_json({"folder": str(folder.resolve()), "parts": [asdict(part) for part in parts]})
    else:
        console.print("\n".join(_line(part) for part in parts), markup=False, highlight=False, soft_wrap=True)
    return int(any(part.problem for part in parts))


@app.command()
def down(
    remove: bool = typer.Option(
        False, "--remove", help="Also delete everything that `up` created, databases included."
    ),
    folder: Path = FOLDER,
    json: bool = JSON,
) -> None:
    """Stop every process of the cluster."""
    from evosearch.devcluster.cluster import Cluster

    with _errors():
        Cluster(folder, note).down(remove)
    if json:
        print_json({"folder": str(folder.resolve()), "removed": remove})


@contextmanager
def _errors() -> Iterator[None]:
    """Report failures of the operating system or of PostgreSQL without a traceback."""
    import psycopg

    try:
        yield
    except (OSError, psycopg.Error) as error:
        raise SearchError(f"cluster: {error}") from error


def _line(part: "PartStatus") -> str:
    since = f"since {clock(part.since)}" if part.since else ""
    return f"{part.name:<10} {part.address:<24} {since:<26} {part.problem or 'healthy'}"
