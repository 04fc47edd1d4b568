"""A search does not start if its tracking store would refuse it; with a real MLflow server with accounts."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from evosearch.errors import TrackingError
from evosearch.preflight.check import check
from evosearch.preflight.stores import prove_tracking_store
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
READER = "reader"


@dataclass(frozen=True)
class Server:
    uri: str
    password: str

    def call(self, path: str, **data: Any) -> requests.Response:
        url = f"{self.uri}/api/2.0/mlflow/{path}"
        return requests.post(url, json=data, auth=("admin", self.password), timeout=30)

    def experiment(self, name: str) -> dict[str, Any] | None:
        url = f"{self.uri}/api/2.0/mlflow/experiments/get-by-name"
        found = requests.get(url, {"experiment_name": name}, auth=("admin", self.password), timeout=30)
        return found.json()["experiment"] if found.ok else None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On loopback, with an administrator and one account that may read what others made."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    made = Server(f"http://127.0.0.1:{port}", secrets.token_hex(16))
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        f"admin_password = {made.password}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    settings = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    settings |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16)}
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--artifacts-destination", str(folder / "artifacts")],
            env={**os.environ, **settings},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240.0
        while not _answers(made.uri):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert made.call("users/create", username=READER, password=made.password).ok
        assert made.call("experiments/create", name="theirs").ok
        yield made
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _answers(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=5).ok
    except requests.RequestException:
        return False


@pytest.fixture
def as_reader(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", READER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.password)


def test_without_an_account_it_is_a_problem(world: World, server: Server, tmp_path: Path) -> None:
    spec = world(tracking={"uri": server.uri})
    (problem,) = check(spec, dry_run=False, watcher=Silent()).problems
    assert problem.where == f"{spec}: tracking.uri"
    assert "not authenticated" in problem.what
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in problem.next
    with pytest.raises(TrackingError, match=r"world\.yaml: tracking\.uri: .*not authenticated"):
        run(spec, Silent())
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("as_reader")
def test_a_check_creates_nothing_and_reports_what_it_verified(world: World, server: Server) -> None:
    result = check(world(tracking={"uri": server.uri, "experiment": "mine"}), dry_run=False, watcher=Silent())
    assert result.ok, result.problems
    (note,) = [text for text in result.notes if "MLflow at" in text]
    assert "accepts this account (experiment 'mine' does not exist yet)" in note
    assert "write access is checked when the search starts" in note
    assert server.experiment("mine") is None


@pytest.mark.usefixtures("as_reader")
def test_a_start_tests_writing_to_the_tracking_store(world: World, server: Server, tmp_path: Path) -> None:
    promotion = {"finalists": 1, "register_as": "night"}
    prove_tracking_store(
        load_spec(world("ours", tracking={"uri": server.uri, "experiment": "ours"}, promotion=promotion))
    )
    found = server.experiment("ours")
    assert found is not None
    assert found["tags"] == [{"key": "evosearch.search", "value": "ours"}]

    spec = world("late", tracking={"uri": server.uri, "experiment": "theirs"})
    assert check(spec, dry_run=False, watcher=Silent()).ok  # it may be read
    with pytest.raises(TrackingError, match=r"late\.yaml: tracking\.uri: .*(?i:permission denied)") as refused:
        run(spec, Silent())
    assert server.password not in str(refused.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("as_reader")
def test_a_registered_model_of_another_user_is_a_problem(world: World, server: Server) -> None:
    assert server.call("registered-models/create", name="theirs").ok
    promotion = {"finalists": 1, "register_as": "theirs"}
    spec = world("heir", tracking={"uri": server.uri, "experiment": "heir"}, promotion=promotion)
    with pytest.raises(TrackingError, match=r"heir\.yaml: tracking\.uri: .*(?i:permission denied)"):
        prove_tracking_store(load_spec(spec))


@pytest.mark.usefixtures("as_reader")
def test_an_experiment_that_was_deleted_is_a_problem(world: World, server: Server) -> None:
    made = server.call("experiments/create", name="gone").json()["experiment_id"]
    assert server.call("experiments/delete", experiment_id=made).ok
    spec = world(tracking={"uri": server.uri, "experiment": "gone"})
    (problem,) = check(spec, dry_run=False, watcher=Silent()).problems
    assert problem.where == f"{spec}: tracking.experiment"
    assert f"mlflow experiments restore -x {made}" in problem.next
