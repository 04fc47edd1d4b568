"""`evosearch logs NAME --address URL`: what a search on a cluster says."""

import sys
import time
from typing import Any

import typer

from evosearch.cli.console import ADDRESS, LINE_EVERY_S, console, note, print_error, required_address, told
from evosearch.search.progress import progress_of, read_line

WITHDRAWN = "{} is withdrawn, and will not start"


def command(
    search: str = typer.Argument(help="A search by its name, or a job by its id."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until it ends, and exit as it did."),
    address: str | None = ADDRESS,
    json: bool = typer.Option(False, "--json", help="Print the lines as the cluster has them."),
) -> int:
    """Print what a search on a cluster said, as a person reads it."""
    from evosearch.execution.jobs import Jobs
    from evosearch.jobs.queue import exit_code, find_job, lines_of

    jobs = Jobs(required_address(address))
    job = find_job(jobs, search)
    reader = Reader(0.0 if follow else LINE_EVERY_S)
    result: dict[str, Any] = {}
    for line in lines_of(jobs, job, follow):
        found = read_line(line)
        result = found if found is not None and found["evosearch"] == "result" else result
        text = line if json else reader.read(line)
        if text is not None:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
    if not follow:
        if job.state == "withdrawn":
            note(WITHDRAWN.format(job.name))
        if job.state == "pending" and not json:
            console.print("it waits for its turn", highlight=False)
        return 0
    ended = find_job(jobs, job.id)
    if ended.active:  # the stream ended before the cluster knew
        time.sleep(2.0)
        ended = find_job(jobs, job.id)
    code = exit_code(ended, result)
    if ended.state == "withdrawn":
        note(WITHDRAWN.format(ended.name))
        sys.exit(code)  # returned, it would be taken for an interrupt of this command, which the same continues
    if code is None:
        print_error("the log ended, and the job has not; the same command goes on")
        return 1
    return code


class Reader:
    """Makes lines of a log readable: of a stage's progress at most one in so many seconds, and its last."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._stage, self._last = every_s, "", 0.0

    def read(self, line: str) -> str | None:
        """What to show of a line; None of one that is passed over."""
        found = read_line(line)
        if found is None:
            return line
        at = time.strftime("%H:%M:%S", time.localtime(found["time"]))
        if found["evosearch"] == "progress":
            progress = progress_of(found)
            finished = progress.total is not None and progress.done >= progress.total
            if progress.stage == self._stage and found["time"] - self._last < self._every_s and not finished:
                return None
            self._stage, self._last = progress.stage, found["time"]
            return f"{at} {told(progress)}"
        if found["evosearch"] == "note":
            return f"{at} {found.get('text', '')}"
        return f"{at} ended: {found.get('stopped', 'done')}{_promoted(found)}"


def _promoted(result: dict[str, Any]) -> str:
    if "promoted" not in result:
        return ""
    return f"; promoted: {result['promoted']}" if result["promoted"] else "; the gate said no"
