"""Searches as jobs of a Ray cluster, by the HTTP address of its dashboard: the only place that knows Ray's job API.

A search is a job that holds one unit of the head's resource `evosearch_search` while it runs. Ray starts jobs that wait
for it in the order they came, so a head with one unit runs one search at a time, with two units two.

What is to be known of a job beyond its state stands in its metadata, which everybody who may list jobs can read:
names and digests, never a secret. Ray cannot take a waiting job back. One that is withdrawn ends as soon as its turn
comes; until then another job, which does nothing, says so.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from evosearch.errors import ClusterError
from evosearch.execution import token
from evosearch.search.progress import MARK

QUEUE = "evosearch_search"  # a resource of the head: how many searches run at once
RUN, CHECK, WITHDRAWAL = "run", "check", "withdrawal"  # kinds of jobs
CONNECT_S, ANSWER_S = 5.0, 60.0  # within which a cluster has to answer; the first job of a cluster takes Ray seconds
READY_S, NOT_READY = 60.0, "No available agent"  # a head that was just started takes jobs a little later
FOLLOW_S, A_SECOND_MORE = 1.0, 1e6  # between two looks at a log; and for so many characters of it
TRIES, TRY_AGAIN_S = 10, 3.0  # of a log that is followed, when the cluster is away
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Without a limit, Ray tells of a hundred nodes in no order, lost ones too; it allows no higher one than this
LIVING = {
    "limit": "10000",
    "filter_keys": "state",
    "filter_predicates": "=",
    "filter_values": "ALIVE",
}
SETTINGS = ("RAY_JOB_START_TIMEOUT_SECONDS", "RAY_JOB_STOP_WAIT_TIME_S")  # of the head, which jobs are subject to


@dataclass(frozen=True)
class Job:
    """One job of ours, as the cluster knows it. Times are seconds since the epoch."""

    id: str
    name: str  # of the search
    search_id: str
    kind: str  # run | check
    spec: str  # digest of what was submitted
    state: str  # pending | withdrawn | running | stopped | succeeded | failed
    submitted: float
    ended: float | None
    exit_code: int | None  # of the program, where it ended by itself
    message: str  # what Ray says of its end
    withdrawn: bool = False  # before its turn came; if that has come all the same, it is about to be ended
    options: str = ""  # of the command line, beyond the spec

    @property
    def active(self) -> bool:
        """Whether it runs, or waits for its turn."""
        return self.state in ("pending", "running")

    @property
    def number(self) -> int:
        """Which submission of its search it is, from 1."""
        return int(self.id.rpartition("-")[2])


class Jobs:
    """The jobs of one cluster.

    Raises:
        ClusterError: the cluster does not answer within seconds, or refuses the token; from every method.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        url = _parts(self.address)
        if url is None or url.scheme not in ("http", "https") or not url.hostname:
            raise ClusterError("--address", f"got '{address}'", "The URL of a Ray dashboard: http://HOST:8265")
        if url.username or url.password:
            allowed = f"A token: {token.PLACES}"
            raise ClusterError("--address", "holds a password", allowed, "Remove what is before the '@'")
        self._host = url.hostname
        self._token = _token()
        with self._asking():
            self._client = _client(self.address, self._token, self._host)

    @property
    def in_the_clear(self) -> bool:
        """Whether the token is readable on the way."""
        return self.address.startswith("http:") and self._host not in LOOPBACK and self._token is not None

    def refuse_open_cluster(self) -> None:
        """Raises:
        ClusterError: the cluster lets anybody in, and nobody said that this is meant.
        """
        if self._token is None:  # which RAY_AUTH_MODE=disabled allows
            return
        with self._asking():
            open = _answers(self.address, self._host)
        if open:
            what = f"the cluster at {self.address} asks for no token: whoever reaches it can run anything on it"
            allowed = "A cluster that was started with RAY_AUTH_MODE=token"
            raise ClusterError("--address", what, allowed, "To use it all the same, set RAY_AUTH_MODE=disabled here")

    def places(self) -> float | None:
        """How many searches the cluster runs at once; None where it does not say."""
        with self._asking():
            nodes = self._client.nodes()
        alive = [node.get("resources_total", {}) for node in nodes if node.get("state") == "ALIVE"]
        return sum(float(resources.get(QUEUE, 0.0)) for resources in alive) or None

    def all(self) -> list[Job]:
        """Every job of ours since the cluster was started, in the order submitted; checks too."""
        with self._asking():
            listed = self._client.list_jobs()
        ours = [job for job in listed if job.submission_id and (job.metadata or {}).get(f"{MARK}_kind")]
        withdrawn = {job.metadata[f"{MARK}_job"] for job in ours if job.metadata[f"{MARK}_kind"] == WITHDRAWAL}
        found = [_job(job, withdrawn) for job in ours if job.metadata[f"{MARK}_kind"] in (RUN, CHECK)]
        return sorted(found, key=lambda job: (job.submitted, job.id))

    def submit(
        self, id: str, kind: str, entrypoint: str, folder: Path | None, about: Mapping[str, str], queue: bool = False
    ) -> bool:
        """Submit a job.

        Args:
            folder: what travels: the job's working directory.
            about: metadata, by keys without our prefix.
            queue: it waits for its turn among searches.

        Returns:
            False where there is a job of this id.
        """
        metadata = {f"{MARK}_{key}": value for key, value in ({"kind": kind} | dict(about)).items()}
        ready_by = time.monotonic() + READY_S
        while True:
            try:
                with self._asking():
                    self._client.submit_job(
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
        """All that a job has said so far."""
        with self._asking():
            return str(self._client.get_job_logs(id))

    def follow(self, id: str) -> Iterator[str]:
        """The lines of a job's log as they come, until it ends; through half a minute without the cluster.

        The log is asked for again and again: Ray's stream of it breaks off while a job waits for its turn.
        """
        read, rest, failures = 0, "", 0
        while True:
            try:
                ended = not self._goes_on(id)
                said = self.log(id)  # after that: what it said last is in it
            except ClusterError:
                failures += 1
                if failures >= TRIES:
                    raise
                time.sleep(TRY_AGAIN_S)
                continue
            *lines, rest = (rest + said[read:]).split("\n")
            read, failures = len(said), 0
            yield from lines
            if ended:
                break
            time.sleep(FOLLOW_S + len(said) / A_SECOND_MORE)
        if rest:
            yield rest

    def _goes_on(self, id: str) -> bool:
        """Whether more is to be heard of a job: one that is withdrawn may wait for the day when its turn comes."""
        with self._asking():
            state = self._client.get_job_info(id).status
        if state.value != "PENDING":
            return not state.is_terminal()
        return any(job.id == id and job.active for job in self.all())

    def stop(self, job: Job) -> None:
        """Ask a job to stop, and return. One that waits is withdrawn."""
        if job.state == "pending":
            about = {"job": job.id, "name": job.name, "search_id": job.search_id, "spec": job.spec}
            self.submit(f"{job.id}-withdrawn", WITHDRAWAL, "true", None, about)
        with self._asking():
            self._client.stop_job(job.id)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Whatever goes wrong on the way, as a ClusterError."""
        import ray

        try:
            yield
        except ray.exceptions.AuthenticationError as exc:
            what = f"the cluster at {self.address} refuses the token" if self._token else "the cluster asks for a token"
            allowed = f"The cluster's own, from {token.PLACES}"
            raise ClusterError("--address", what, allowed, "Check which is set") from exc
        except OSError as exc:  # requests' own errors are, too
            raise self._unreachable(exc) from exc
        except (RuntimeError, ValueError, KeyError, TypeError) as exc:
            if NOT_READY in str(exc):
                what = f"the head of the cluster at {self.address} has not finished starting"
                raise ClusterError("--address", what, next="Try again in a minute") from exc
            what = f"{self.address} does not answer as a Ray dashboard does: {_last_line(exc)}"
            raise ClusterError("--address", what, next="Check the address, and the log of the cluster's head") from exc

    def _unreachable(self, exc: Exception) -> ClusterError:
        what = f"no cluster answers at {self.address} ({type(exc).__name__})"
        next = "Is it up, and its dashboard's port reachable from here?"
        return ClusterError("--address", what, "The URL of its Ray dashboard: http://HOST:8265", next)


def _parts(address: str) -> SplitResult | None:
    """The parts of a URL; None of what is none, as where a bracket is left open."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


def _token() -> str | None:
    """The token to show; None where the user says that there is none.

    Raises:
        ClusterError: there is none, though nobody said so.
    """
    if not token.is_shown():
        return None
    try:
        found = token.find()
    except (OSError, ValueError) as exc:
        what = f"{os.environ['RAY_AUTH_TOKEN_PATH']} cannot be read: {_last_line(exc)}"
        raise ClusterError("RAY_AUTH_TOKEN_PATH", what, token.PLACES) from None
    if found is None:
        what, next = "no token is set to show to the cluster", "Ask whoever started the cluster for its token"
        raise ClusterError("RAY_AUTH_TOKEN_PATH", what, f"A token in {token.PLACES}", next)
    return found


def _client(address: str, shown: str | None, host: str) -> Any:
    """Ray's client, which waits for ever and lets RAY_ADDRESS go before what it is told, made to do neither."""
    from ray.job_submission import JobSubmissionClient

    for noisy in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{noisy}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **_bounded(host), **options)

        def nodes(self) -> list[dict[str, Any]]:
            listed = self._do_request("GET", "/api/v0/nodes", params=LIVING).json()
            found: list[dict[str, Any]] = listed["data"]["result"]["result"]
            return found

    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        # Empty where none is to be shown: left out, Ray would add one by the RAY_AUTH_MODE that it read first
        return Client(address, headers={"Authorization": f"Bearer {shown}" if shown else ""})
    finally:
        os.environ.update(kept)


def _answers(address: str, host: str) -> bool:
    """Whether the cluster lists its jobs for somebody without a token."""
    import requests

    options = _bounded(host)
    return bool(requests.get(f"{address}/api/jobs/", timeout=options.pop("timeout"), **options).ok)


def _bounded(host: str) -> dict[str, Any]:
    """Options of every request. What goes to this machine goes through nobody's proxy."""
    options: dict[str, Any] = {"timeout": (CONNECT_S, ANSWER_S)}
    return options | ({"proxies": {"http": None, "https": None}} if host in LOOPBACK else {})


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


def _last_line(exc: BaseException) -> str:
    """Of an error that carries the server's traceback the line that says what it was."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip(" .")]
    return (lines[-1] if lines else type(exc).__name__)[:300]
