"""`evosearch logs NAME --address URL`: the log of a search on a cluster."""

import sys
import time
from typing import Any

import typer

from evosearch.cli.completion import searches
from evosearch.cli.console import ADDRESS, LINE_EVERY_S, console, note, print_error, progress_text, required_address
from evosearch.durations import clock
from evosearch.search.progress import progress_of, read_line
from evosearch.visible import visible, without_colors

WITHDRAWN = "{} was withdrawn and will not start"


def command(
    search: str = typer.Argument(help="A search by its name, or a job by its id.", autocompletion=searches),
    follow: bool = typer.Option(
        False, "--follow", "-f", help="Follow the log until the search ends, and exit with its exit code."
    ),
    address: str | None = ADDRESS,
    json: bool = typer.Option(False, "--json", help="Print the raw lines."),
) -> int:
    """Print the log of a search on a cluster, with at most one progress line per minute unless followed."""
    from evosearch.execution.ray_jobs import Jobs
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
            sys.stdout.write(f"{visible(without_colors(text))}\n")
            sys.stdout.flush()
    if not follow:
        if job.state == "withdrawn":
            note(WITHDRAWN.format(job.name))
        if job.state == "pending" and not json:
            console.print("queued, not started yet", highlight=False)
        return 0
    ended = find_job(jobs, job.id)
    if ended.active:  # the log ended before the cluster updated the state
        time.sleep(2.0)
        ended = find_job(jobs, job.id)
    code = exit_code(ended, result)
    if ended.state == "withdrawn":
        note(WITHDRAWN.format(ended.name))
        sys.exit(code)  # a returned code would be reported as an interrupt of this command
    if code is None:
        print_error("the log ended before the job. Run the same command to continue.")
        return 1
    return code


class Reader:
    """Formats log lines as text, and drops progress lines that follow each other too quickly.

    Args:
        every_s: Minimum seconds between two progress lines of a stage; the last one is always shown.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s, self._stage, self._last = every_s, "", 0.0

    def read(self, line: str) -> str | None:
        """Return the text to show for a line, or None to skip it."""
        found = read_line(line)
        if found is None:
            return line
        at = clock(found["time"])
        if found["evosearch"] == "progress":
            progress = progress_of(found)
            finished = progress.total is not None and progress.done >= progress.total
            if progress.stage == self._stage and found["time"] - self._last < self._every_s and not finished:
                return None
            self._stage, self._last = progress.stage, found["time"]
            return f"{at} {progress_text(progress)}"
        if found["evosearch"] == "note":
            return f"{at} {found.get('text', '')}"
        return f"{at} ended: {found.get('stopped', 'done')}{_promoted(found)}"


def _promoted(result: dict[str, Any]) -> str:
    if "promoted" not in result:
        return ""
    return f"; promoted: {result['promoted']}" if result["promoted"] else "; not promoted"
