"""A complete search on its own cluster, which loses a node; ledger, MLflow and registry are checked afterwards."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks._cluster_proof import authentication, problem
from benchmarks._cluster_proof.evidence import check_ledger, check_mirror, check_registry, of_type, read, unanswered
from evosearch.devcluster import mlflow_server
from evosearch.devcluster.cluster import Cluster
from evosearch.devcluster.mlflow_rest import Rest
from evosearch.devcluster.process_environment import ACCOUNT, dashboard, inherited, of_clients, tracking
from evosearch.devcluster.processes import HOST, LOG_LINES
from evosearch.devcluster.ray_nodes import worker
from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import EvosearchError, SearchError
from evosearch.search.ledger.events import Event

LOST = worker(2)
SUBMIT_S, FIRST_S, END_S = 400.0, 300.0, 600.0  # time limits, generous for a busy machine
STILL_S = 3.0  # time without events after which the other worker is idle
ENDED = ("FAILED", "STOPPED")  # states of a job without further progress
BEHIND = ", catching up"  # logged by a search that ends before its mirror has caught up
LOOPBACK = (HOST, f"::ffff:{HOST}")


def prove(keep: bool, say: Callable[[str], None]) -> bool:
    """Run the proof; return whether it passed.

    Args:
        keep: Whether to keep the cluster's folder.
        say: Called with a line for each stage with its seconds, and with the problems.
    """
    folder = Path(tempfile.mkdtemp(prefix="evosearch-proof-"))
    folder.chmod(0o711)  # PostgreSQL's user must be able to traverse it
    run = ClusterProof(folder, say)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM also shuts the cluster down
    problems = []
    try:
        for step in (run.stages, lambda: run.end(keep)):
            try:
                step()
            except (EvosearchError, requests.RequestException, subprocess.SubprocessError, OSError) as exc:
                problems.append(f"{exc}\n{run.job_log()}")
    except BaseException:
        run.end(keep)  # also after Ctrl-C and unexpected errors
        raise
    say("\n".join(["FAILED:", *problems]) if problems else "passed")
    return not problems


class ClusterProof:
    """The stages of one proof."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.cluster = Cluster(folder / "cluster")

    def stages(self) -> None:
        """Run all stages.

        Raises:
            SearchError: A check failed.
        """
        cluster = self.cluster
        with self._stage("models ready"):
            problem.prepare()
        with self._stage("cluster up"):
            cluster.up(nodes=2, cpus_per_node=1)
        os.environ["PGPASSFILE"] = str(cluster.postgres.passfile)  # for reading the ledger
        with self._stage("unauthenticated requests rejected"):
            authentication.check(cluster)
        with self._stage("submitted"):
            spec = problem.write_spec(self.folder, cluster.ledger(), tracking(cluster.state))
            self._submit(spec)
        with self._stage("first candidate scored"):
            self._wait(self._candidate_scored, FIRST_S, "no candidate was scored")
        with self._stage(f"{LOST} suspended"):
            self._suspend_node()
        with self._stage("loopback only"):
            self._check_listening()
        with self._stage(f"{LOST} lost during a job"):
            self._lose_node()
        with self._stage("search ended"):
            self._wait(lambda: self._job()["status"] == "SUCCEEDED", END_S, "the search did not succeed")
            if BEHIND in self._log():  # resuming the search only completes the mirror
                self.say("  MLflow lags behind: submitted again")
                self._submit(spec)
                self._wait(lambda: self._job()["status"] == "SUCCEEDED", END_S, "MLflow did not catch up")
        self._check_records()
        with self._stage(f"{LOST} up again"):
            self._check_up_again()
        self._check_secrets()

    # --- stages -------------------------------------------------------------------------------------------------

    def _submit(self, spec: Path) -> None:
        clients = of_clients(self.cluster.places, self.cluster.state, self.cluster.postgres)
        settings = inherited(os.environ) | TELEMETRY_OFF | clients
        command = [sys.executable, "-m", "evosearch.cli.main", "submit", str(spec)]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=SUBMIT_S, check=False)
        if done.returncode:
            raise SearchError(f"`evosearch submit` failed with exit code {done.returncode}: {done.stderr.strip()}")

    def _suspend_node(self) -> None:
        """Suspend a node, so that its worker has a candidate when it is killed."""
        for process in self.cluster.state.processes[LOST].members():
            process.suspend()

    def _check_listening(self) -> None:
        """Check that the cluster, the search's process and its workers listen on loopback only."""
        found = self.cluster.listening()
        if open := [entry for entry in found if entry[0] not in LOOPBACK]:
            raise SearchError(f"listening on addresses other than loopback: {open}")
        names = Counter(name for _, _, name in found)
        self.say(f"  sockets: {', '.join(f'{count} of {name}' for name, count in sorted(names.items()))}")

    def _lose_node(self) -> None:
        """Kill the suspended node once the other node is idle."""
        seen, still_since = 0, time.monotonic()

        def waits_for_it() -> bool:
            nonlocal seen, still_since
            events = self._events()
            if len(events) != seen:
                seen, still_since = len(events), time.monotonic()
            if of_type(events, "retried"):  # the node was given up before it was killed
                return True
            return bool(unanswered(events)) and time.monotonic() - still_since > STILL_S

        self._wait(waits_for_it, END_S, "no candidate waits for the suspended node")
        self.say(f"  running on it: candidate {', '.join(sorted(unanswered(self._events()))) or '(given up already)'}")
        self.cluster.kill_node(LOST)
        lacking = [part.name for part in self.cluster.status() if part.problem]
        if lacking != [LOST]:
            raise SearchError(f"status reports problems of {lacking} instead of {LOST} only")

    def _check_records(self) -> None:
        cluster, events = self.cluster, self._events()
        rest = Rest(tracking(cluster.state), (ACCOUNT, mlflow_server.account_password(cluster.places)))
        with self._stage("ledger"):
            self.say(f"  {check_ledger(events, problem.CANDIDATES)}")
        with self._stage("leaderboard, over REST"):
            self.say(f"  {check_mirror(rest, problem.NAME, events)}")
        with self._stage("registry, over REST"):
            self.say(f"  {check_registry(rest, problem.NAME, events)}")

    def _check_up_again(self) -> None:
        """Check that `up` restarts only the killed node."""
        before = {part.name: part.pid for part in self.cluster.status()}
        self.cluster.up()
        after = {part.name: part.pid for part in self.cluster.status() if not part.problem}
        if after.keys() != before.keys() or {name for name in after if after[name] != before[name]} != {LOST}:
            raise SearchError(f"processes before `up`: {before}, after it: {after}")

    def _check_secrets(self) -> None:
        """Check that neither logs nor files of the search contain a password or token."""
        with self._stage("no secret leaked"):
            leaks = self.cluster.leaks()
            if leaks:
                raise SearchError(f"secrets found in {', '.join(leaks)}")

    def end(self, keep: bool) -> None:
        """Shut the cluster down and delete its folder unless `keep`.

        Raises:
            SearchError: A process of the cluster is still running.
        """
        with self._stage("cluster down"):
            processes = list(self.cluster.processes())
            if self.cluster.places.state.is_file():
                self.cluster.down(remove=not keep)
            _, left = psutil.wait_procs(processes, timeout=5.0)
        if keep:
            self.say(f"  kept: {self.folder}")
        else:
            shutil.rmtree(self.folder)
        if left:
            raise SearchError(f"still running: {left}")

    # --- observation --------------------------------------------------------------------------------------

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.say(f"{name}: {time.monotonic() - began:.1f} s")

    def _events(self) -> list[Event]:
        return read(self.cluster.ledger(), problem.NAME)

    def _candidate_scored(self) -> bool:
        events = self._events()
        proposed = {payload["candidate"] for payload in of_type(events, "asked")}
        return any(payload["candidate"] in proposed for payload in of_type(events, "scored"))

    def _wait(self, done: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + within_s
        while not done():
            if (status := self._job()["status"]) in ENDED or time.monotonic() > deadline:
                raise SearchError(f"{otherwise} within {within_s:.0f} s; the job is {status}")
            time.sleep(0.25)

    def _jobs(self, path: str = "") -> Any:
        """Response of Ray's job API."""
        headers = {"Authorization": f"Bearer {self.cluster.places.token.read_text()}"}
        response = requests.get(f"{dashboard(self.cluster.state)}/api/jobs/{path}", headers=headers, timeout=30)
        response.raise_for_status()
        return response.json()

    def _job(self) -> dict[str, Any]:
        """The latest submitted job of the search."""
        ours = [job for job in self._jobs() if (job.get("metadata") or {}).get("evosearch_name") == problem.NAME]
        runs = [job for job in ours if job["metadata"]["evosearch_kind"] == "run"]
        if not runs:
            raise SearchError("the search has no job")
        return dict(max(runs, key=lambda job: job["start_time"]))

    def _log(self) -> str:
        return str(self._jobs(f"{self._job()['submission_id']}/logs")["logs"])

    def job_log(self) -> str:
        """Last lines of the search's log; empty if there is none."""
        try:
            lines = self._log().splitlines()
        except (EvosearchError, requests.RequestException, OSError, KeyError):
            return ""
        return "\n".join(lines[-LOG_LINES:])
