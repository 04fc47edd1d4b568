"""Checks that every service of a cluster rejects requests without valid credentials or with another host name."""

from collections.abc import Iterable
from typing import Any

import grpc
import psycopg
import requests

from evosearch.devcluster import mlflow_server
from evosearch.devcluster.cluster import LEDGER, Cluster
from evosearch.devcluster.mlflow_rest import Rest
from evosearch.devcluster.postgres import USER, Postgres
from evosearch.devcluster.process_environment import ACCOUNT, dashboard, tracking
from evosearch.devcluster.processes import HOST
from evosearch.errors import SearchError
from evosearch.tracking.server import ADMIN

ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # sent by every node to its head
TIMEOUT_S = 30.0
SHORT_S = 5.0  # a server of another protocol may not answer
WRONG = "f" * 64  # an invalid password or token


def check(cluster: Cluster) -> None:
    """Call every service without credentials and with wrong ones.

    Raises:
        SearchError: A service accepted a request or answered unexpectedly.
    """
    state = cluster.state
    own = (ACCOUNT, mlflow_server.account_password(cluster.places))
    check_http(tracking(state), f"{dashboard(state)}/api/jobs/", own)
    check_postgres(cluster.postgres)
    check_gcs(f"{HOST}:{state.ports['ray']}")
    check_metrics(cluster.listening())


def check_metrics(listening: Iterable[tuple[str, int, str]]) -> None:
    """Check that no server of a cluster serves metrics without credentials, as Ray's do by default.

    Args:
        listening: (address, port, process name) of each listening socket.

    Raises:
        SearchError: As in `check`.
    """
    for address, port, name in listening:
        for path in ("/metrics", "/"):
            try:
                response = requests.get(f"http://{address}:{port}{path}", timeout=SHORT_S)
            except requests.RequestException:  # another protocol
                continue
            if "# HELP" in response.text or "# TYPE" in response.text:
                raise SearchError(f"{name} serves metrics without credentials at {address}:{port}{path}")


def check_http(mlflow: str, jobs: str, own: tuple[str, str]) -> None:
    """Check MLflow and Ray's job API; MLflow also with valid credentials and another host name.

    Args:
        mlflow: Base URL of MLflow.
        jobs: URL of Ray's job API.
        own: Account and password for searches.

    Raises:
        SearchError: As in `check`.
    """
    experiments = f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    requested: list[tuple[str, str, dict[str, Any], int]] = [
        ("MLflow, no credentials", experiments, {}, 401),
        ("MLflow, the default password", experiments, {"auth": (ADMIN, "password1234")}, 401),
        ("MLflow, a wrong password", experiments, {"auth": (ACCOUNT, "wrong")}, 401),
        ("MLflow, another host name", experiments, {"auth": own, "headers": {"Host": "evil.example"}}, 403),
        ("Ray's dashboard, no token", jobs, {}, 401),
        ("Ray's dashboard, a wrong token", jobs, {"headers": {"Authorization": f"Bearer {WRONG}"}}, 403),
    ]
    for request, url, options, code in requested:
        if (got := requests.get(url, timeout=TIMEOUT_S, **options).status_code) != code:
            raise SearchError(f"{request}: status {got}, expected {code}")
    made = Rest(mlflow, own).call("POST", "users/create", username="another", password="of-twelve-characters")
    if made.status_code != 403:
        raise SearchError(f"account '{ACCOUNT}' creates an account: status {made.status_code}, expected 403")


def check_postgres(postgres: Postgres) -> None:
    """Check PostgreSQL.

    Raises:
        SearchError: As in `check`.
    """
    for case, password in {"no password": "", "a wrong password": WRONG}.items():
        # Without an explicit passfile, PGPASSFILE would supply the right password
        key = f"user={USER} password='{password}' passfile={postgres.folder}/none"
        where = f"host={HOST} port={postgres.port} dbname={LEDGER} connect_timeout={TIMEOUT_S:.0f}"
        try:
            psycopg.connect(f"{where} {key}").close()
        except psycopg.OperationalError as exc:
            if "password" not in str(exc):  # "no password supplied", "password authentication failed"
                raise SearchError(f"PostgreSQL, {case}: {str(exc).strip()}") from None
        else:
            raise SearchError(f"PostgreSQL, {case}: connection accepted")


def check_gcs(address: str) -> None:
    """Check the port of Ray's head for nodes and drivers, through which every node can be controlled.

    Raises:
        SearchError: As in `check`.
    """
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(ALIVE, request_serializer=bytes, response_deserializer=bytes)
        for case, headers in {"no token": [], "a wrong token": [("authorization", f"Bearer {WRONG}")]}.items():
            try:
                ask(b"", metadata=headers, timeout=TIMEOUT_S, wait_for_ready=True)
            except grpc.RpcError as exc:
                if exc.code() != grpc.StatusCode.UNAUTHENTICATED:
                    raise SearchError(f"Ray's head, {case}: {exc.code()}: {exc.details()}") from None
            else:
                raise SearchError(f"Ray's head, {case}: request accepted")
