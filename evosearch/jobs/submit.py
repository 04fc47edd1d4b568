"""Submission of a spec to a cluster: check it locally, check it on the cluster, then queue it.

While a job waits or runs, further submissions of the same spec refer to it, also for other users. After it has ended,
submitting the spec again resumes the search from its ledger.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from evosearch.errors import ClusterError
from evosearch.execution.ray_jobs import QUEUE, RUN, Job, Jobs
from evosearch.jobs.commands import Options, run_command
from evosearch.jobs.local_check import check_locally, storage_notes
from evosearch.jobs.pack import Pack, pack
from evosearch.jobs.queue import position
from evosearch.jobs.remote_check import RemoteCheck
from evosearch.jobs.submission import Submitted, listed_job, next_id, search_id_of
from evosearch.search.progress import Watcher
from evosearch.spec.diagnostics import Diagnostics

POLL_S = 1.0
WITHDRAWN_S = 90.0  # time in which a withdrawn job ends once its turn has come


def submit(path: Path, address: str, watcher: Watcher, options: Options) -> Submitted:
    """Check a spec locally and on the cluster, and queue it.

    Args:
        path: The spec.
        address: URL of the cluster's dashboard.
        watcher: Receives notes about the progress.
        options: Command-line options of the jobs.

    Raises:
        ClusterError: The cluster is unreachable, refuses the token or does not require one, or another search with this
            name is active.
        InputError: The spec is invalid; several errors are raised together as `Problems`.
    """
    jobs = Jobs(address)
    jobs.refuse_open_cluster()
    diagnostics = Diagnostics()
    spec = check_locally(path, diagnostics)
    with TemporaryDirectory(prefix="evosearch-", ignore_cleanup_errors=True) as folder:
        packed = pack(path, spec.name, spec.suite, Path(folder), diagnostics)
        diagnostics.raise_all(str(path))
        for text in (*packed.notes, *storage_notes(spec, packed, jobs)):
            diagnostics.note(text)
        submitted = Submitted(spec.name, search_id_of(spec), diagnostics.notes)
        listed = settled_jobs(jobs)
        if (known := active_job(listed, submitted)) is not None:
            _adopt(submitted, listed, known, packed, options)
        elif RemoteCheck(submitted, packed, jobs, options).passes(spec, watcher):
            enqueue(submitted, packed, jobs, options)
    return submitted


def active_job(listed: Sequence[Job], submitted: Submitted) -> Job | None:
    """Return the waiting or running job of the same search, if any.

    Raises:
        ClusterError: Another search with this name is waiting or running.
    """
    found = [job for job in listed if job.kind == RUN and job.active and job.name == submitted.name]
    for job in found:
        if job.search_id != submitted.search_id:
            state = "waiting" if job.state == "pending" else "running"
            what = f"another search with this name is {state} on the cluster ({job.id})"
            raise ClusterError(submitted.name, what, "One search per name", "Stop it, or choose another name")
    return found[-1] if found else None


def settled_jobs(jobs: Jobs) -> list[Job]:
    """Return all jobs, after waiting for withdrawn jobs that have started to end."""
    listed, deadline = jobs.all(), time.monotonic() + WITHDRAWN_S
    while any(job.withdrawn and job.active for job in listed) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        listed = jobs.all()
    return listed


def _adopt(submitted: Submitted, listed: Sequence[Job], job: Job, packed: Pack, options: Options) -> None:
    """Make the active job of the same search the job of this submission."""
    submitted.job, submitted.state, submitted.already = job.id, job.state, True
    submitted.position = position(job, listed)
    unaffected = "the job continues as submitted. To apply the change, stop it and submit again"
    if job.spec != packed.digest:
        submitted.notes.append(f"the files changed after they were submitted; {unaffected}")
    if job.options != options.of(RUN):  # options are not part of the search's id
        then, now = (given or "no options" for given in (job.options, options.of(RUN)))
        submitted.notes.append(f"it was submitted with {then}, not with {now}; {unaffected}")


def enqueue(submitted: Submitted, packed: Pack, jobs: Jobs, options: Options) -> None:
    """Queue a checked spec unless another submission of the same search was faster.

    The active job and the next id are determined from the same listing, and Ray accepts each id only once. Of two
    simultaneous submissions, one is therefore rejected, and finds the other's job in its next listing.
    """
    capacity = jobs.capacity()
    about = submitted.about(packed) | {"options": options.of(RUN)}
    while True:
        listed = settled_jobs(jobs)
        if (known := active_job(listed, submitted)) is not None:
            _adopt(submitted, listed, known, packed, options)
            return
        earlier = [job for job in listed if job.kind == RUN and job.search_id == submitted.search_id]
        id = next_id(f"{submitted.name}-{submitted.search_id[:12]}", earlier)
        command = run_command(packed.spec, options)
        if jobs.submit(id, RUN, command, packed.folder, about, queue=capacity is not None):
            break
        listed_job(jobs.all(), id)  # the id is taken and must be listed now, so the next one differs
    listed = jobs.all()
    job = listed_job(listed, id)
    submitted.job, submitted.state, submitted.position = id, job.state, position(job, listed)
    if capacity is None:
        submitted.notes.append(f"the cluster has no resource {QUEUE}: searches run at the same time and share workers")
