"""Searches on a cluster: which there are, what they say, and how one is stopped."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from evosearch.errors import ClusterError, did_you_mean
from evosearch.execution.jobs import CHECK, RUN, Job, Jobs
from evosearch.search.progress import read_line

GATE_SAID_NO, WRONG_INPUT, INTERRUPTED = 3, 2, (130, 143, -15)
STOP_S = 90.0  # Ray kills what has not ended by itself within RAY_JOB_STOP_WAIT_TIME_S
POLL_S = 0.5


def waiting(listed: Sequence[Job]) -> list[Job]:
    """Those that wait for their turn, the next first."""
    return [job for job in listed if job.kind == RUN and job.state == "pending"]


def position(job: Job, listed: Sequence[Job]) -> int | None:
    """Whose turn comes how soon, from 1; None of one that does not wait."""
    return next((place for place, one in enumerate(waiting(listed), start=1) if one.id == job.id), None)


def rows(address: str) -> list[dict[str, Any]]:
    """One row a search, in the order submitted: its latest job, with what the search last said of itself.

    Raises:
        ClusterError: see `Jobs`.
    """
    jobs = Jobs(address)
    listed = jobs.all()
    latest: dict[tuple[str, str], Job] = {}
    for job in listed:
        known = latest.get((job.name, job.search_id))
        if job.kind == RUN or (job.active and (known is None or not known.active)):
            latest[job.name, job.search_id] = job
    return [_row(job, listed, jobs) for job in latest.values()]


def _row(job: Job, listed: Sequence[Job], jobs: Jobs) -> dict[str, Any]:
    lines = our_lines(jobs.log(job.id)) if job.kind == RUN and job.state not in ("pending", "withdrawn") else []
    running = job.state == "running"
    told = [line for line in reversed(lines) if line["evosearch"] == "progress"]
    # While it runs, what it is at; afterwards, how many candidates there were
    progress: dict[str, Any] = next((line for line in told if running or line["stage"].endswith("search")), {})
    result: dict[str, Any] = next((line for line in reversed(lines) if line["evosearch"] == "result"), {})
    place = position(job, listed)
    return {
        "name": job.name,
        "search_id": job.search_id,
        "job": job.id,
        "cluster": jobs.address,
        "state": state_of(job, place, result),
        "position": place,
        "stage": progress.get("stage"),
        "done": progress.get("done"),
        "total": progress.get("total"),
        "failed": result.get("failed", progress.get("failed")),
        "best_fitness": next((line["best"] for line in told if "best" in line), None),
        "per_minute": progress.get("per_minute") if running else None,
        "seconds_left": _left(progress) if running else None,
        "promoted": result.get("promoted"),
        "problem": _problem(job, result),
        "submitted": job.submitted,
        "since": lines[0]["time"] if lines else None,
        "updated": lines[-1]["time"] if lines else job.ended or job.submitted,
    }


def state_of(job: Job, place: int | None, result: dict[str, Any]) -> str:
    """In words: `queued (2.)`, `running`, `finished`, `finished: the gate said no`, `stopped: interrupted`, …"""
    if job.state == "pending":
        return "checking" if job.kind == CHECK else f"queued ({place}.)"
    if job.state == "running":
        return "checking" if job.kind == CHECK else "running"
    if job.state == "succeeded":
        return "finished"
    if job.state == "withdrawn":
        return "withdrawn"
    code = exit_code(job, result)
    if code == GATE_SAID_NO:
        return "finished: the gate said no"
    return "stopped: interrupted" if code in INTERRUPTED else "failed"


def exit_code(job: Job, result: dict[str, Any]) -> int | None:
    """As `evosearch run` would have ended; None of a job that has not. One that was withdrawn never will begin."""
    if job.active:
        return None
    if job.state in ("stopped", "withdrawn"):
        return INTERRUPTED[0]
    code = job.exit_code if job.exit_code is not None else result.get("exit")
    return code if code is not None else int(job.state != "succeeded")


def _problem(job: Job, result: dict[str, Any]) -> str | None:
    if job.state != "failed" or exit_code(job, result) in (GATE_SAID_NO, *INTERRUPTED):
        return None
    told = str(result.get("stopped", "")).removeprefix("failed: ")
    return told or next((line for line in job.message.splitlines() if line.strip()), "no reason is known")


def _left(progress: dict[str, Any]) -> float | None:
    left = progress.get("seconds_left")
    return None if left is None else max(0.0, left - max(0.0, time.time() - progress["time"]))


def our_lines(log: str) -> list[dict[str, Any]]:
    """What a search said of itself, in order."""
    return [found for line in log.splitlines() if (found := read_line(line)) is not None]


def find_job(jobs: Jobs, search: str) -> Job:
    """The latest job of a search, by the search's name; or the job of that id.

    Raises:
        ClusterError: there is none.
    """
    listed = jobs.all()
    named = [job for job in listed if job.id == search] or [job for job in listed if job.name == search]
    if named:
        return next((job for job in reversed(named) if job.kind == RUN), named[-1])
    known = list(dict.fromkeys(job.name for job in listed))
    allowed = f"There: {', '.join(known) or 'none'}"
    next_step = did_you_mean(search, known) or "A cluster whose head was started anew knows earlier ones no more"
    raise ClusterError(search, f"no such search on {jobs.address}", allowed, next_step)


def lines_of(jobs: Jobs, job: Job, follow: bool) -> Iterator[str]:
    """What a job said; with `follow` until it ends."""
    if follow:
        yield from jobs.follow(job.id)
    else:
        yield from jobs.log(job.id).splitlines()


def stop(address: str, search: str) -> dict[str, Any]:
    """Stop a search and wait until it has: what it recorded stays, and the same submit continues it.

    Returns:
        Name, job, and `state` as `rows` has it; `was` is the state it was in. `clean`: it said itself that it stopped.

    Raises:
        ClusterError: no such search, or it has not ended in time.
    """
    jobs = Jobs(address)
    job = find_job(jobs, search)
    was = state_of(job, position(job, jobs.all()), {})
    if job.active:
        jobs.stop(job)
    deadline = time.monotonic() + STOP_S
    while (now := find_job(jobs, job.id)).active:
        if time.monotonic() > deadline:
            what = f"job {job.id} has not ended {STOP_S:.0f} s after it was told to"
            raise ClusterError(search, what, next="Look at its log, and at the cluster's head")
        time.sleep(POLL_S)
    row = _row(now, [], jobs)
    lines = our_lines(jobs.log(job.id)) if now.state != "withdrawn" else []
    clean = not job.active or now.state == "withdrawn" or any(line["evosearch"] == "result" for line in lines)
    return row | {"was": was, "clean": clean}
