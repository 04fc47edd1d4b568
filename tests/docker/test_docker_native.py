"""The databases and the MLflow server of compose.yaml, started natively with its files, options and scripts.

Only addresses, paths and ports are replaced.
"""

import configparser
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from evosearch.environment import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
MADE = ("evosearch", "mlflow", "mlflow_auth")
DEADLINE_S = 400.0  # for MLflow to start: minutes on a busy machine
EXPERIMENTS = "/api/2.0/mlflow/experiments"


@dataclass
class Databases:
    """The server, and a folder with the secrets as in a container's /run/secrets."""

    port: int
    secrets: Path
    log: Path

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def connect(self, user: str, password: str, database: str) -> Any:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=user, password=password, dbname=database, connect_timeout=10
        )


@pytest.fixture(scope="module")
def databases(env: dict[str, str], compose: Callable[..., dict[str, Any]]) -> Iterator[Databases]:
    """A PostgreSQL server after databases.sql, executed as in the image: by psql, as superuser `postgres`."""
    from evosearch.devcluster import postgres as module

    if module.find_programs() is None or shutil.which("psql") is None:
        pytest.skip("no PostgreSQL server is installed")
    folder = Path(tempfile.mkdtemp(prefix="evosearch-docker-"))  # the server's user cannot read pytest's folders
    folder.chmod(0o711)  # traversable: the server runs as another user if we are root
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "USER", "postgres")  # as in the image
        server = module.Postgres(folder / "postgres")
        try:
            server.start(durable=False, die_with_parent=True)
            for name, source in compose()["secrets"].items():
                value = env[source["environment"]].replace("postgres:5432:", f"127.0.0.1:{server.port}:")
                (secrets / name).write_text(value)
                (secrets / name).chmod(0o400)
            script = (DOCKER / "config" / "databases.sql").read_text().replace("/run/secrets", str(secrets))
            command = [
                "psql",
                "-v",
                "ON_ERROR_STOP=1",
                "--no-password",
                "--no-psqlrc",
                "--dbname",
                server.url("postgres"),
            ]
            passfile = os.environ | {"PGPASSFILE": str(server.passfile)}
            done = subprocess.run(
                command, input=script, capture_output=True, text=True, timeout=DEADLINE_S, env=passfile
            )
            assert done.returncode == 0, done.stderr
            yield Databases(server.port, secrets, server.log)
        finally:
            server.stop()
            shutil.rmtree(folder)


@pytest.mark.parametrize("user", ["evosearch", "mlflow"])
@pytest.mark.parametrize("database", [*MADE, "postgres", "template1"])
def test_each_role_can_connect_only_to_its_own_databases(databases: Databases, user: str, database: str) -> None:
    password = databases.secret(f"{user}_db_password")
    if database == user or (database == "mlflow_auth" and user == "mlflow"):
        with databases.connect(user, password, database) as connection:
            connection.execute("CREATE TABLE mine (n integer)")
            connection.execute("DROP TABLE mine")
    else:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            databases.connect(user, password, database)


def test_roles_have_no_rights_on_the_server(databases: Databases) -> None:
    with databases.connect("evosearch", databases.secret("evosearch_db_password"), "evosearch") as connection:
        rights = "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname IN ('evosearch', 'mlflow')"
        assert connection.execute(rights).fetchall() == [(False, False, False)] * 2


def test_a_wrong_password_is_refused_and_no_password_is_logged(databases: Databases) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        databases.connect("evosearch", databases.secret("mlflow_db_password"), "evosearch")
    log = databases.log.read_text()
    assert "password authentication failed" in log
    assert databases.secret("evosearch_db_password") not in log
    assert databases.secret("mlflow_db_password") not in log


@dataclass
class Server:
    """The MLflow server, and mlflow-accounts with the same environment."""

    port: int
    accounts: Callable[[], str]
    log: Path

    def get(self, path: str, account: tuple[str, str] | None = None, host: str = "mlflow:5000") -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", auth=account, headers={"Host": host}, timeout=30)


@pytest.fixture(scope="module")
def mlflow(databases: Databases, compose: Callable[..., dict[str, Any]]) -> Iterator[Server]:
    """The server with compose.yaml's command and environment; `native` replaces addresses and paths."""
    from evosearch.devcluster.processes import free_port

    service = compose()["services"]["mlflow"]
    folder = databases.secrets.parent
    port = free_port()
    replaced = {
        "postgres:5432": f"127.0.0.1:{databases.port}",
        "/run/secrets": str(databases.secrets),
        "/etc/mlflow/auth.ini": str(folder / "auth.ini"),
        "=/artifacts": f"={folder / 'artifacts'}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
    }

    def native(text: str) -> str:
        for old, new in replaced.items():
            text = text.replace(old, new)
        return text

    (folder / "auth.ini").write_text(native((DOCKER / "config" / "mlflow_auth.ini").read_text()))
    programs = f"{DOCKER}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {key: native(str(value)) for key, value in service["environment"].items()}
    environment |= TELEMETRY_OFF | {"PATH": programs, "HOME": str(folder), "OMP_NUM_THREADS": "1"}

    def accounts() -> str:
        script = [str(DOCKER / "with-secrets"), "mlflow-accounts", "true"]
        return subprocess.run(
            script, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=True
        ).stderr

    command = [str(DOCKER / "with-secrets"), *map(native, service["command"])]
    server = Server(port, accounts, folder / "mlflow.log")
    with server.log.open("ab") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _await(server, process)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(DEADLINE_S)


def _await(server: Server, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, server.log.read_text()[-2000:]
        try:
            if server.get("/health").ok:
                return
        except requests.RequestException:  # not started yet, or too busy to answer
            time.sleep(0.3)
    raise AssertionError(server.log.read_text()[-2000:])


@pytest.mark.slow
def test_the_mlflow_server_requires_an_account_and_an_allowed_host(mlflow: Server, databases: Databases) -> None:
    account = ("evosearch", databases.secret("mlflow_tracking_password"))
    admin = ("admin", databases.secret("mlflow_admin_password"))
    search = f"{EXPERIMENTS}/search?max_results=1"
    assert mlflow.get("/health", host="10.0.0.7:5000").ok, "a probe needs neither account nor host name"
    assert mlflow.get(search).status_code == 401
    assert mlflow.get(search, ("evosearch", "guessed")).status_code == 401
    assert mlflow.get(search, ("admin", account[1])).status_code == 401
    assert mlflow.get(search, account, host="evil.example:5000").status_code == 403
    for host in ("mlflow:5000", "127.0.0.1:8080", "localhost:5000"):
        assert mlflow.get(search, account, host=host).status_code == 200, host
    assert mlflow.get(search, admin).status_code == 200
    users = "/api/2.0/mlflow/users/get?username=evosearch"
    assert mlflow.get(users, admin).json()["user"]["is_admin"] is False
    assert mlflow.get("/api/2.0/mlflow/users/get?username=admin", account).status_code == 403
    made = requests.post(
        f"http://127.0.0.1:{mlflow.port}{EXPERIMENTS}/create", json={"name": "night"}, auth=account, timeout=30
    )
    assert made.ok, made.text
    found = mlflow.get(f"{EXPERIMENTS}/get-by-name?experiment_name=night", account).json()["experiment"]
    assert found["artifact_location"].startswith("mlflow-artifacts:/"), "through the server"

    # After a new secret and the script that a restart runs, the old password is invalid.
    fresh = "f" * 48
    (databases.secrets / "mlflow_tracking_password").chmod(0o600)
    (databases.secrets / "mlflow_tracking_password").write_text(fresh)
    assert mlflow.accounts().endswith("mlflow-accounts: changed the password of account 'evosearch'\n")
    assert mlflow.get(search, ("evosearch", fresh)).status_code == 200
    deadline = time.monotonic() + 90  # until a restart, the server caches the old password for a minute
    while mlflow.get(search, account).status_code != 401:
        assert time.monotonic() < deadline, "the old password is still accepted"
        time.sleep(2)
    log = mlflow.log.read_text()
    assert "created account 'evosearch'" in log
    for secret in (fresh, account[1], admin[1], databases.secret("mlflow_secret_key")):
        assert secret not in log


def test_the_accounts_file_has_the_settings_of_evosearch_cluster(tmp_path: Path) -> None:
    from evosearch.devcluster import mlflow_server
    from evosearch.devcluster.places import Places
    from evosearch.devcluster.postgres import Postgres

    places, postgres = Places(tmp_path), Postgres(tmp_path / "postgres")
    places.make()
    postgres.folder.mkdir()
    (postgres.folder / "port").write_text("5432")
    written = mlflow_server.environment(places, postgres)["MLFLOW_AUTH_CONFIG_PATH"]
    natively, here = configparser.ConfigParser(), configparser.ConfigParser()
    natively.read(written)
    here.read(DOCKER / "config" / "mlflow_auth.ini")
    own = {"database_uri", "admin_username", "admin_password"}  # in containers, accounts are set by the environment
    assert {key: value for key, value in natively["mlflow"].items() if key not in own} == {
        key: value for key, value in here["mlflow"].items() if key not in own
    }


def test_the_accounts_file_contains_no_password() -> None:
    config = configparser.ConfigParser()
    config.read(DOCKER / "config" / "mlflow_auth.ini")
    keys = {"default_permission", "database_uri", "authorization_function", "auth_cache_ttl_seconds"}
    assert set(config["mlflow"]) == keys
    assert "@postgres:" in config["mlflow"]["database_uri"]
    assert ":" not in config["mlflow"]["database_uri"].split("://")[1].split("@")[0]
