"""Checks of a submission's storage, and withdrawn jobs."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evosearch.execution.ray_jobs import RUN, Jobs
from evosearch.jobs import submit
from evosearch.jobs.local_check import outlives_job
from evosearch.jobs.remote_check import check_runs_folder
from evosearch.jobs.submission import Submitted
from evosearch.jobs.submit import active_job, settled_jobs


@pytest.mark.parametrize(
    "url",
    [
        "http://host:5000",
        "https://host",
        "postgresql://evosearch@host/night",
        "postgresql+psycopg://evosearch@host/night",
        "sqlite:////data/night.db",
        "sqlite+pysqlite:////data/night.db",
        "file:///data/mlruns",
        "file:/data/mlruns",
        "/data/mlruns",
        "jsonl:events.jsonl",
        "databricks",
        "databricks://profile",
    ],
)
def test_storage_that_outlives_the_job_is_accepted(url: str) -> None:
    assert outlives_job(url)


@pytest.mark.parametrize(
    "url",
    [
        "mlruns",
        "./mlruns",
        "file:mlruns",
        "file:./mlruns",
        "sqlite:///night.db",
        "sqlite+pysqlite:///night.db",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_storage_that_is_lost_with_the_job_is_recognized(url: str) -> None:
    assert not outlives_job(url)


@pytest.mark.parametrize("ledger", [None, "postgresql://evosearch@host/night"])
def test_a_head_without_a_runs_folder_is_reported(ledger: str | None) -> None:
    spec: Any = SimpleNamespace(file=Path("night.yaml"), config=SimpleNamespace(ledger=ledger))

    def check(log: str) -> tuple[list[str], list[str]]:
        submitted = Submitted("night", "0" * 64, [])
        check_runs_folder(submitted, spec, log)
        return [str(problem) for problem in submitted.problems], submitted.notes

    assert check("A=1 B=2\nEVOSEARCH_RUNS=/data/all runs\n{}") == ([], [])
    for value, what in (("", "has no EVOSEARCH_RUNS"), ("runs", "has EVOSEARCH_RUNS=runs")):
        problems, notes = check(f"A=1 B=2\nEVOSEARCH_RUNS={value}\n{{}}")
        (text,) = problems or notes
        assert f"the cluster's head {what}: files in the runs folder are lost with the job" in text
        assert "Start its head with EVOSEARCH_RUNS=/FOLDER in its environment" in text
        assert bool(problems) == (ledger is None)
        assert not problems or text.startswith("night.yaml: ledger: ")


class Cluster:
    """A dashboard with one withdrawn job."""

    def __init__(self) -> None:
        self.status = "PENDING"
        self.listings = 0
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = dumps(cluster.answer(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> Any:
        if path.endswith("/api/version"):
            return {"version": "4", "ray_version": "2.50.0", "ray_commit": "", "session_name": ""}
        if path.endswith("/logs"):
            return {"logs": ""}
        job = self.job("night-1", self.status, kind=RUN, name="night", search_id="0" * 64)
        if path.endswith("/night-1"):
            return job
        self.listings += 1
        if self.listings >= 3 and self.status == "RUNNING":
            self.status = "STOPPED"
        return [job, self.job("night-1-withdrawn", "SUCCEEDED", kind="withdrawal", job="night-1")]

    def job(self, id: str, status: str, **about: str) -> dict[str, Any]:
        metadata = {f"evosearch_{key}": value for key, value in about.items()}
        return {
            "type": "SUBMISSION",
            "submission_id": id,
            "status": status,
            "entrypoint": "true",
            "metadata": metadata,
            "start_time": 1000,
        }


@pytest.fixture
def cluster(ray_knows_its_mode: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = Cluster()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_withdrawn_job_is_inactive_before_its_turn(cluster: Cluster) -> None:
    jobs = Jobs(cluster.url)
    (job,) = jobs.all()
    assert (job.state, job.active, job.withdrawn) == ("withdrawn", False, True)
    assert list(jobs.follow("night-1")) == []


def test_a_submission_waits_for_a_withdrawn_job_to_end(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The withdrawn job is not mistaken for the new submission's, and does not run at the same time as it."""
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    cluster.status = "RUNNING"
    jobs = Jobs(cluster.url)
    assert active_job(settled_jobs(jobs), Submitted("night", "0" * 64, [])) is None
    assert cluster.status == "STOPPED"
    assert cluster.listings >= 3
