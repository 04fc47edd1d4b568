"""Searches as jobs of a Ray cluster, over the HTTP API of its dashboard.

A search is a job that takes one unit of the head's resource `evosearch_search` while it runs. Ray starts waiting jobs
in submission order, so a head with N units runs N searches at a time.

Apart from its state, everything about a job is in its metadata, which every client of the cluster can read: names and
digests, never a secret. Ray cannot remove a waiting job. A withdrawn job ends as soon as its turn comes; until then a
second, empty job records the withdrawal.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch.errors import ClusterError
from evosearch.execution.ray_client import NOT_READY, Dashboard
from evosearch.search.progress import MARK

QUEUE = "evosearch_search"  # resource of the head: number of searches that run at the same time
RUN, CHECK, WITHDRAWAL = "run", "check", "withdrawal"  # kinds of jobs
READY_S = 60.0  # time until a head that has just started accepts jobs
FOLLOW_S, CHARACTERS_PER_S = 1.0, 1e6  # pause between two reads of a log, longer for long logs
TRIES, TRY_AGAIN_S = 10, 3.0  # failed reads of a log before giving up, and the pause between them
SETTINGS = ("RAY_JOB_START_TIMEOUT_SECONDS", "RAY_JOB_STOP_WAIT_TIME_S")  # the head's limits for jobs


@dataclass(frozen=True)
class Job:
    """One evosearch job on a cluster. Times are seconds since the epoch."""

    id: str
    name: str  # of the search
    search_id: str
    kind: str  # run | check
    spec: str  # digest of the submitted files
    state: str  # pending | withdrawn | running | stopped | succeeded | failed
    submitted: float
    ended: float | None
    exit_code: int | None  # of the program, if it ended by itself
    message: str  # Ray's message about how it ended
    withdrawn: bool = False  # withdrawn while it waited; if it runs nevertheless, it is about to be stopped
    options: str = ""  # command-line options, without the spec

    @property
    def active(self) -> bool:
        """Whether it is running or waiting for its turn."""
        return self.state in ("pending", "running")

    @property
    def number(self) -> int:
        """Number of this submission among those of its search, from 1."""
        return int(self.id.rpartition("-")[2])


class Jobs:
    """The jobs of one cluster.

    Args:
        address: URL of the cluster's dashboard.

    Raises:
        ClusterError: The cluster does not answer within seconds, or refuses the token. Every method can raise it.
    """

    def __init__(self, address: str) -> None:
        self._dashboard = Dashboard(address)
        self.address = self._dashboard.address

    @property
    def in_the_clear(self) -> bool:
        """Whether the token is sent unencrypted over the network."""
        return self._dashboard.in_the_clear

    def refuse_open_cluster(self) -> None:
        """Check that the cluster requires a token; RAY_AUTH_MODE=disabled skips the check.

        Raises:
            ClusterError: The cluster answers without a token.
        """
        if self._dashboard.sends_token and self._dashboard.answers_without_token():
            what = f"the cluster at {self.address} requires no token: anyone who can reach it can run code on it"
            allowed = "A cluster started with RAY_AUTH_MODE=token"
            raise ClusterError("--address", what, allowed, "To use it anyway, set RAY_AUTH_MODE=disabled here")

    def capacity(self) -> float | None:
        """Return how many searches the cluster runs at the same time; None if it does not declare a limit."""
        with self._dashboard.calls():
            nodes = self._dashboard.client.nodes()
        alive = [node.get("resources_total", {}) for node in nodes if node.get("state") == "ALIVE"]
        return sum(float(resources.get(QUEUE, 0.0)) for resources in alive) or None

    def all(self) -> list[Job]:
        """Return every run and check since the cluster was started, in submission order."""
        with self._dashboard.calls():
            listed = self._dashboard.client.list_jobs()
        ours = [job for job in listed if job.submission_id and (job.metadata or {}).get(f"{MARK}_kind")]
        withdrawn = {job.metadata[f"{MARK}_job"] for job in ours if job.metadata[f"{MARK}_kind"] == WITHDRAWAL}
        found = [_job(job, withdrawn) for job in ours if job.metadata[f"{MARK}_kind"] in (RUN, CHECK)]
        return sorted(found, key=lambda job: (job.submitted, job.id))

    def submit(
        self, id: str, kind: str, entrypoint: str, folder: Path | None, about: Mapping[str, str], queue: bool = False
    ) -> bool:
        """Submit a job.

        Args:
            id: The job's id.
            kind: `run`, `check` or `withdrawal`.
            entrypoint: Shell command.
            folder: Folder to upload, the job's working directory.
            about: Metadata, without the prefix of its keys.
            queue: Whether the job waits for its turn among the searches.

        Returns:
            False if a job with this id exists.
        """
        metadata = {f"{MARK}_{key}": value for key, value in ({"kind": kind} | dict(about)).items()}
        ready_by = time.monotonic() + READY_S
        while True:
            try:
                with self._dashboard.calls():
                    self._dashboard.client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=id,
                        runtime_env={"working_dir": str(folder)} if folder is not None else {},
                        metadata=metadata,
                        entrypoint_resources={QUEUE: 1} if queue else None,
                    )
                return True
            except ClusterError as error:
                if "already exists" in str(error.__cause__):
                    return False
                if NOT_READY not in str(error.__cause__) or time.monotonic() > ready_by:
                    raise

    def log(self, id: str) -> str:
        """Return a job's log so far."""
        with self._dashboard.calls():
            return str(self._dashboard.client.get_job_logs(id))

    def follow(self, id: str) -> Iterator[str]:
        """Yield the lines of a job's log until the job ends; the cluster may be unreachable for half a minute.

        The log is polled, because Ray's log stream breaks off while a job waits for its turn.
        """
        read, rest, failures = 0, "", 0
        while True:
            try:
                ended = not self._continues(id)
                log = self.log(id)  # read after the state, so that it includes the last lines
            except ClusterError:
                failures += 1
                if failures >= TRIES:
                    raise
                time.sleep(TRY_AGAIN_S)
                continue
            *lines, rest = (rest + log[read:]).split("\n")
            read, failures = len(log), 0
            yield from lines
            if ended:
                break
            time.sleep(FOLLOW_S + len(log) / CHARACTERS_PER_S)
        if rest:
            yield rest

    def _continues(self, id: str) -> bool:
        """Return whether a job's log may grow. A withdrawn job may be pending for days without any output."""
        with self._dashboard.calls():
            state = self._dashboard.client.get_job_info(id).status
        if state.value != "PENDING":
            return not state.is_terminal()
        return any(job.id == id and job.active for job in self.all())

    def stop(self, job: Job) -> None:
        """Request that a job stops, without waiting for it. A waiting job is withdrawn."""
        if job.state == "pending":
            about = {"job": job.id, "name": job.name, "search_id": job.search_id, "spec": job.spec}
            self.submit(f"{job.id}-withdrawn", WITHDRAWAL, "true", None, about)
        with self._dashboard.calls():
            self._dashboard.client.stop_job(job.id)


def _job(found: Any, withdrawn: set[str]) -> Job:
    about = {key.removeprefix(f"{MARK}_"): value for key, value in found.metadata.items()}
    state, is_withdrawn = found.status.value.lower(), found.submission_id in withdrawn
    return Job(
        id=found.submission_id,
        name=about.get("name", ""),
        search_id=about.get("search_id", ""),
        kind=about["kind"],
        spec=about.get("spec", ""),
        state="withdrawn" if is_withdrawn and state == "pending" else state,
        submitted=(found.start_time or 0) / 1000.0,
        ended=found.end_time / 1000.0 if found.end_time else None,
        exit_code=found.driver_exit_code,
        message=found.message or "",
        withdrawn=is_withdrawn,
        options=about.get("options", ""),
    )
