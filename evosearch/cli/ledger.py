"""`evosearch ledger verify|backup|recover`: care for the record of a search."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from evosearch.cli.completion import searches
from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher

if TYPE_CHECKING:
    from evosearch.service.ledger_upkeep import RecoverReport, VerifyReport

SEARCH = typer.Argument(
    help="A search (name, run directory or spec), or a ledger (URL or SQLite file).", autocompletion=searches
)

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Verify a ledger, copy it, or recover what is intact in a damaged file."""


@app.command()
def verify(search: str = SEARCH, allow_pickle: bool = ALLOW_PICKLE, json: bool = JSON) -> int:
    """Check all checksums and completeness; given a spec, also replay its searches. Exit code 1 if a check fails."""
    from evosearch.service.ledger_upkeep import verify

    with closing(watcher(json)) as watching:
        report = verify(search, watching, allow_pickle)
    if json:
        print_json(report)
    else:
        _print(_verified(report))
    return int(not report.ok)


@app.command()
def backup(
    search: str = SEARCH,
    out: Path = typer.Option(..., "-o", "--out", metavar="FILE", help="New SQLite file."),
    json: bool = JSON,
) -> None:
    """Copy a ledger to an SQLite file, also while a search runs, and verify the copy."""
    from evosearch.checkpoints.disk_space import size
    from evosearch.service.ledger_upkeep import backup

    report = backup(search, out)
    if json:
        print_json(report)
    else:
        counts = f"{report.searches} searches, {report.events} events, {size(report.bytes)}"
        _print([f"{report.out}: {counts}, verified"])


@app.command()
def recover(
    search: str = SEARCH,
    out: Path | None = typer.Option(
        None, "-o", "--out", metavar="FILE", help="New SQLite file. Default: replaces the damaged file, which is kept."
    ),
    json: bool = JSON,
) -> None:
    """Write a new ledger with everything intact in a damaged SQLite file, up to the first gap of each search."""
    from evosearch.service.ledger_upkeep import recover

    report = recover(search, out)
    if json:
        print_json(report)
    else:
        _print(_recovered(report))


def _verified(report: "VerifyReport") -> list[str]:
    lines = [f"{report.ledger}: {report.item_sets} item sets, {report.test_openings} test openings"]
    for search in report.searches:
        name = search.name or search.search_id[:12]
        lines.append(f"  {name}: {search.events} events, {search.columns} columns of item scores")
        lines += [f"    {problem}" for problem in search.problems]
    lines += [
        f"  {one.name}: {one.problem or f'{one.proposals} proposals replayed exactly'}" for one in report.replayed
    ]
    lines += [f"  {problem}" for problem in report.problems]
    return [*lines, "no problems" if report.ok else "DAMAGED: restore a backup, or use evosearch ledger recover"]


def _recovered(report: "RecoverReport") -> list[str]:
    lines = [f"{report.out}: {report.item_sets} item sets, {report.test_openings} test openings"]
    for search in report.searches:
        name = search.name or search.search_id[:12]
        lost = f"; {search.beyond} intact events after these are left out" if search.beyond else ""
        lines.append(f"  {name}: events 1 to {search.kept}{lost}" if search.kept else f"  {name}: nothing usable{lost}")
    lines += [f"  kept: {file}" for file in report.kept]
    if report.kept:
        lines.append("Run the same command to resume: the rest is proposed and scored again.")
    return lines


def _print(lines: list[str]) -> None:
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
