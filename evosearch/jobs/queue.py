"""The queue of searches on a cluster: list searches, read their logs, stop a search."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evosearch.errors import ClusterError, did_you_mean
from evosearch.execution.ray_jobs import CHECK, RUN, Job, Jobs
from evosearch.reporting.status import StatusRow
from evosearch.search.progress import read_line

NOT_PROMOTED, INTERRUPTED = 3, (130, 143, -15)  # exit codes
STOP_S = 90.0  # longer than RAY_JOB_STOP_WAIT_TIME_S, after which Ray kills the job
POLL_S = 0.5


def waiting(listed: Sequence[Job]) -> list[Job]:
    """Return the waiting searches, the next one first."""
    return [job for job in listed if job.kind == RUN and job.state == "pending"]


def position(job: Job, listed: Sequence[Job]) -> int | None:
    """Return a job's position in the queue, from 1; None if it is not waiting."""
    return next((place for place, one in enumerate(waiting(listed), start=1) if one.id == job.id), None)


@dataclass(frozen=True, kw_only=True)
class JobRow(StatusRow):
    """One search on a cluster, by its latest job."""

    job: str  # its id
    cluster: str
    position: int | None  # in the queue, from 1
    submitted: float  # in seconds since the epoch


def rows(address: str) -> list[JobRow]:
    """Return one row per search in submission order, with its latest job and the latest progress in its log.

    Raises:
        ClusterError: See `Jobs`.
    """
    jobs = Jobs(address)
    listed = jobs.all()
    latest: dict[tuple[str, str], Job] = {}
    for job in listed:
        known = latest.get((job.name, job.search_id))
        if job.kind == RUN or (job.active and (known is None or not known.active)):
            latest[job.name, job.search_id] = job
    return [_row(job, listed, jobs) for job in latest.values()]


def _row(job: Job, listed: Sequence[Job], jobs: Jobs) -> JobRow:
    lines = progress_lines(jobs.log(job.id)) if job.kind == RUN and job.state not in ("pending", "withdrawn") else []
    running = job.state == "running"
    updates = [line for line in reversed(lines) if line["evosearch"] == "progress"]
    # While it runs, the current stage; afterwards the latest search stage, which has the number of candidates
    progress: dict[str, Any] = next((line for line in updates if running or line["stage"].endswith("search")), {})
    result: dict[str, Any] = next((line for line in reversed(lines) if line["evosearch"] == "result"), {})
    place = position(job, listed)
    return JobRow(
        name=job.name,
        search_id=job.search_id,
        job=job.id,
        cluster=jobs.address,
        state=state_of(job, place, result),
        position=place,
        stage=progress.get("stage"),
        done=progress.get("done"),
        total=progress.get("total"),
        failed=result.get("failed", progress.get("failed")),
        best_fitness=next((line["best"] for line in updates if "best" in line), None),
        per_minute=progress.get("per_minute") if running else None,
        seconds_left=_left(progress) if running else None,
        promoted=result.get("promoted"),
        problem=_problem(job, result),
        submitted=job.submitted,
        since=lines[0]["time"] if lines else None,
        updated=lines[-1]["time"] if lines else job.ended or job.submitted,
    )


def state_of(job: Job, place: int | None, result: dict[str, Any]) -> str:
    """Return the state in words, such as `queued (#2)`, `running` or `finished: not promoted`."""
    if job.state == "pending":
        return "checking" if job.kind == CHECK else f"queued (#{place})"
    if job.state == "running":
        return "checking" if job.kind == CHECK else "running"
    if job.state == "succeeded":
        return "finished"
    if job.state == "withdrawn":
        return "withdrawn"
    code = exit_code(job, result)
    if code == NOT_PROMOTED:
        return "finished: not promoted"
    return "stopped: interrupted" if code in INTERRUPTED else "failed"


def exit_code(job: Job, result: dict[str, Any]) -> int | None:
    """Return the exit code of `evosearch run`, or None while the job waits or runs."""
    if job.active:
        return None
    if job.state in ("stopped", "withdrawn"):
        return INTERRUPTED[0]
    code = job.exit_code if job.exit_code is not None else result.get("exit")
    return code if code is not None else int(job.state != "succeeded")


def _problem(job: Job, result: dict[str, Any]) -> str | None:
    if job.state != "failed" or exit_code(job, result) in (NOT_PROMOTED, *INTERRUPTED):
        return None
    reason = str(result.get("stopped", "")).removeprefix("failed: ")
    return reason or next((line for line in job.message.splitlines() if line.strip()), "unknown reason")


def _left(progress: dict[str, Any]) -> float | None:
    left = progress.get("seconds_left")
    return None if left is None else max(0.0, left - max(0.0, time.time() - progress["time"]))


def progress_lines(log: str) -> list[dict[str, Any]]:
    """Return the progress lines of a log, in order."""
    return [found for line in log.splitlines() if (found := read_line(line)) is not None]


def find_job(jobs: Jobs, search: str) -> Job:
    """Return the latest job of a search, given by its name, or the job with this id.

    Raises:
        ClusterError: There is none.
    """
    listed = jobs.all()
    named = [job for job in listed if job.id == search] or [job for job in listed if job.name == search]
    if named:
        return next((job for job in reversed(named) if job.kind == RUN), named[-1])
    known = list(dict.fromkeys(job.name for job in listed))
    allowed = f"Known searches: {', '.join(known) or 'none'}"
    next_step = did_you_mean(search, known) or "A restarted head does not know earlier searches"
    raise ClusterError(search, f"no such search on {jobs.address}", allowed, next_step)


def lines_of(jobs: Jobs, job: Job, follow: bool) -> Iterator[str]:
    """Yield the lines of a job's log; with `follow` until it ends."""
    if follow:
        yield from jobs.follow(job.id)
    else:
        yield from jobs.log(job.id).splitlines()


def stop(address: str, search: str) -> dict[str, Any]:
    """Stop a search and wait until it has ended. Its records are kept; submitting it again resumes it.

    Returns:
        Its row as in `rows`, with `was`, the previous state, and `clean`, whether it recorded its shutdown.

    Raises:
        ClusterError: There is no such search, or it has not ended in time.
    """
    jobs = Jobs(address)
    job = find_job(jobs, search)
    was = state_of(job, position(job, jobs.all()), {})
    if job.active:
        jobs.stop(job)
    deadline = time.monotonic() + STOP_S
    while (now := find_job(jobs, job.id)).active:
        if time.monotonic() > deadline:
            what = f"job {job.id} has not ended {STOP_S:.0f} s after it was stopped"
            raise ClusterError(search, what, next="Check its log, and the log of the cluster's head")
        time.sleep(POLL_S)
    row = _row(now, [], jobs)
    lines = progress_lines(jobs.log(job.id)) if now.state != "withdrawn" else []
    clean = not job.active or now.state == "withdrawn" or any(line["evosearch"] == "result" for line in lines)
    return asdict(row) | {"was": was, "clean": clean}
