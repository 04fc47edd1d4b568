"""The MLflow server of a cluster: accounts, one worker process, everything it knows in PostgreSQL and the folder."""

import os
import sys
from importlib.util import find_spec

import requests

from evosearch.devcluster.environment import ACCOUNT, kept, tracking
from evosearch.devcluster.mlflow_rest import Rest
from evosearch.devcluster.places import Places, State
from evosearch.devcluster.postgres import Postgres
from evosearch.devcluster.private import secret, write_private
from evosearch.devcluster.processes import HOST
from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import InputError, SearchError

ADMIN = "admin"
STORE, ACCOUNTS = "mlflow", "mlflow_auth"  # databases
OF_ACCOUNTS = "flask_wtf"  # what MLflow's accounts need beyond MLflow; a plain installation has the rest


def check_installed() -> None:
    """Raises:
    InputError: the server could not ask for accounts.
    """
    if find_spec(OF_ACCOUNTS) is None:
        what = f"{sys.executable} has no {OF_ACCOUNTS}, which MLflow's accounts need"
        raise InputError("scripts/cluster", what, next="Run ./scripts/setup server first")


def command(places: Places, state: State, postgres: Postgres) -> list[str]:
    port = state.ports["mlflow"]
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", _database(postgres, STORE)),
        *("--artifacts-destination", str(places.folder / "artifacts")),
        *("--allowed-hosts", f"{HOST}:{port},localhost:{port}"),
        *("--cors-allowed-origins", f"http://{HOST}:{port},http://localhost:{port}"),
    ]


def environment(places: Places, postgres: Postgres) -> dict[str, str]:
    """Of its process; the file that this writes holds the administrator's password."""
    config = places.secrets / "mlflow-auth.ini"
    settings = {
        "default_permission": "READ",  # of what others made; who makes something manages it
        "database_uri": _database(postgres, ACCOUNTS),
        "admin_username": ADMIN,
        "admin_password": admin_password(places),
        "auth_cache_ttl_seconds": "60",  # else every request costs a slow hash; changes by the API take effect at once
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    write_private(config, "[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    ours = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret(places.secrets / "mlflow-sessions"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PGPASSFILE": str(postgres.passfile),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return kept(os.environ) | TELEMETRY_OFF | ours


def admin_password(places: Places) -> str:
    return secret(places.secrets / "mlflow-admin")


def account_password(places: Places) -> str:
    return secret(places.secrets / f"mlflow-{ACCOUNT}")


def lacks(places: Places, state: State) -> str | None:
    """What the server lacks; None once it answers the searches' account."""
    try:
        rest = Rest(tracking(state), (ACCOUNT, account_password(places)))
        response = rest.call("GET", "experiments/search", max_results=1)
    except requests.RequestException as exc:
        return type(exc).__name__
    return None if response.ok else f"it answers {response.status_code} to account '{ACCOUNT}'"


def answers(state: State) -> str | None:
    """As `lacks`, before there are accounts: whether anything answers."""
    try:
        return None if requests.get(f"{tracking(state)}/health", timeout=5).ok else "/health is not well"
    except requests.RequestException as exc:
        return type(exc).__name__


def make_account(places: Places, state: State) -> None:
    """Make the account of the searches; the administrator's is for making accounts."""
    admin = Rest(tracking(state), (ADMIN, admin_password(places)))
    if admin.call("GET", "users/get", username=ACCOUNT).ok:
        return
    made = admin.call("POST", "users/create", username=ACCOUNT, password=account_password(places))
    if not made.ok:
        raise SearchError(f"MLflow does not make account '{ACCOUNT}': {made.status_code} {made.text}")


def _database(postgres: Postgres, name: str) -> str:
    return postgres.url(name).replace("postgresql://", "postgresql+psycopg://", 1)
