"""That nobody gets into a cluster without an account, a password or the token, or from a page that a browser shows."""

from typing import Any

import grpc
import psycopg
import requests

from evosearch.devcluster import mlflow_server
from evosearch.devcluster.cluster import LEDGER, Cluster
from evosearch.devcluster.environment import ACCOUNT, dashboard, tracking
from evosearch.devcluster.mlflow_rest import Rest
from evosearch.devcluster.postgres import USER, Postgres
from evosearch.devcluster.processes import HOST
from evosearch.errors import SearchError

ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # asked by every node of its head
ANSWER_S = 30.0
WRONG = "f" * 64  # a password or token that is none


def check(cluster: Cluster) -> None:
    """Knock at all doors with no key and with wrong ones.

    Raises:
        SearchError: one opens, or does not answer as it should; it is named.
    """
    state = cluster.state
    own = (ACCOUNT, mlflow_server.account_password(cluster.places))
    check_http(tracking(state), f"{dashboard(state)}/api/jobs/", own)
    check_postgres(cluster.postgres)
    check_gcs(f"{HOST}:{state.ports['ray']}")


def check_http(mlflow: str, jobs: str, own: tuple[str, str]) -> None:
    """MLflow, also to a page elsewhere that knows the account, and Ray's jobs.

    Args:
        own: the account and password of the searches.

    Raises:
        SearchError: as `check`.
    """
    experiments = f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    asked: list[tuple[str, str, dict[str, Any], int]] = [
        ("MLflow, nobody", experiments, {}, 401),
        ("MLflow, the old default password", experiments, {"auth": (mlflow_server.ADMIN, "password1234")}, 401),
        ("MLflow, a wrong password", experiments, {"auth": (ACCOUNT, "wrong")}, 401),
        ("MLflow, a page elsewhere", experiments, {"auth": own, "headers": {"Host": "evil.example"}}, 403),
        ("Ray's dashboard, nobody", jobs, {}, 401),
        ("Ray's dashboard, a wrong token", jobs, {"headers": {"Authorization": f"Bearer {WRONG}"}}, 403),
    ]
    for who, url, options, code in asked:
        if (got := requests.get(url, timeout=ANSWER_S, **options).status_code) != code:
            raise SearchError(f"{who}: the answer is {got}, not {code}")
    made = Rest(mlflow, own).call("POST", "users/create", username="another", password="of-twelve-characters")
    if made.status_code != 403:
        raise SearchError(f"account '{ACCOUNT}' asks for another account: the answer is {made.status_code}")


def check_postgres(postgres: Postgres) -> None:
    """Raises:
    SearchError: as `check`.
    """
    for who, password in {"nobody": "", "a wrong password": WRONG}.items():
        key = f"user={USER} password='{password}' passfile={postgres.folder}/none"  # else PGPASSFILE has the right one
        where = f"host={HOST} port={postgres.port} dbname={LEDGER} connect_timeout={ANSWER_S:.0f}"
        try:
            psycopg.connect(f"{where} {key}").close()
        except psycopg.OperationalError as exc:
            if "password" not in str(exc):  # "no password supplied", "password authentication failed"
                raise SearchError(f"PostgreSQL, {who}: {str(exc).strip()}") from None
        else:
            raise SearchError(f"PostgreSQL, {who}: it lets them in")


def check_gcs(address: str) -> None:
    """The head's own door, for nodes and drivers: whoever gets in there runs anything on every node.

    Raises:
        SearchError: as `check`.
    """
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(ALIVE, request_serializer=bytes, response_deserializer=bytes)
        for who, headers in {"nobody": [], "a wrong token": [("authorization", f"Bearer {WRONG}")]}.items():
            try:
                ask(b"", metadata=headers, timeout=ANSWER_S, wait_for_ready=True)
            except grpc.RpcError as exc:
                if exc.code() != grpc.StatusCode.UNAUTHENTICATED:
                    raise SearchError(f"Ray's head, {who}: {exc.code()}: {exc.details()}") from None
            else:
                raise SearchError(f"Ray's head, {who}: it answers")
