"""`evosearch submit SPEC --address URL`: check a search and queue it on a cluster."""

from contextlib import closing
from pathlib import Path

import typer

from evosearch.cli.console import (
    ADDRESS,
    ALLOW_PICKLE,
    ALLOW_UNRELATED,
    CONTINUE_FROM_BEST,
    JSON,
    UNVERIFIED,
    console,
    note,
    print_json,
    required_address,
    show_problem,
    watcher,
)


def command(
    spec: Path = typer.Argument(help="A search spec (YAML), with one or several stages."),
    address: str | None = ADDRESS,
    continue_from_best: bool = CONTINUE_FROM_BEST,
    allow_pickle: bool = ALLOW_PICKLE,
    unverified: bool = UNVERIFIED,
    allow_unrelated: bool = ALLOW_UNRELATED,
    json: bool = JSON,
) -> int:
    """Check a spec here and on a cluster, and queue it there. Submitting it again resumes a stopped search."""
    from evosearch.jobs.commands import Options
    from evosearch.jobs.submit import submit

    url = required_address(address)
    with closing(watcher(json)) as watching:
        found = submit(spec, url, watching, Options(continue_from_best, allow_pickle, unverified, allow_unrelated))
    if json:
        print_json(found.to_json())
        return 2 if found.problems else 0
    for problem in found.problems:
        show_problem(console, problem)
    for text in found.notes:
        note(text)
    if found.problems:
        return 2
    console.print(_summary(found.name, found.job, found.state, found.position, found.already), highlight=False)
    console.print(f"evosearch logs {found.name} -f --address {url}", style="bold", highlight=False, soft_wrap=True)
    return 0


def _summary(name: str, job: str | None, state: str | None, position: int | None, already: bool) -> str:
    """`night is queued: next in line (job night-0123456789ab-1)`."""
    where = f": {'next in line' if position == 1 else f'number {position} in line'}" if position else ""
    how = "was submitted before, and is" if already else "is"
    return f"{name} {how} {'queued' if state == 'pending' else state}{where} (job {job})"
