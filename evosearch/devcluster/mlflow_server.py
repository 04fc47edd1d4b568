"""MLflow server of a cluster, with accounts and one worker process; its data is in PostgreSQL and in the folder."""

import os
import sys

import requests

from evosearch.devcluster.mlflow_rest import Rest
from evosearch.devcluster.places import Places, State
from evosearch.devcluster.postgres import Postgres
from evosearch.devcluster.private import secret, write_private
from evosearch.devcluster.process_environment import ACCOUNT, inherited, tracking
from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import SearchError
from evosearch.tracking.server import ACCOUNTS_APP, ADMIN, accounts_config, network

STORE, ACCOUNTS = "mlflow", "mlflow_auth"  # databases


def command(places: Places, state: State, postgres: Postgres) -> list[str]:
    """Return the server's command line."""
    return [
        *(sys.executable, "-m", "mlflow", "server", *ACCOUNTS_APP),
        *network(state.ports["mlflow"]),
        *("--backend-store-uri", _database(postgres, STORE)),
        *("--artifacts-destination", str(places.folder / "artifacts")),
    ]


def environment(places: Places, postgres: Postgres) -> dict[str, str]:
    """Return the server's environment; also write its config file, which contains the administrator's password."""
    config = places.secrets / "mlflow-auth.ini"
    write_private(config, accounts_config(_database(postgres, ACCOUNTS), admin_password(places)))
    ours = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret(places.secrets / "mlflow-sessions"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PGPASSFILE": str(postgres.passfile),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return inherited(os.environ) | TELEMETRY_OFF | ours


def admin_password(places: Places) -> str:
    """Return the password of the administrator, created on first use."""
    return secret(places.secrets / "mlflow-admin")


def account_password(places: Places) -> str:
    """Return the password of the account for searches, created on first use."""
    return secret(places.secrets / f"mlflow-{ACCOUNT}")


def problem(places: Places, state: State) -> str | None:
    """Return why the server is not healthy; None once it accepts the account for searches."""
    try:
        rest = Rest(tracking(state), (ACCOUNT, account_password(places)))
        response = rest.call("GET", "experiments/search", max_results=1)
    except requests.RequestException as exc:
        return type(exc).__name__
    return None if response.ok else f"answers {response.status_code} to account '{ACCOUNT}'"


def startup_problem(state: State) -> str | None:
    """Return why the server has not started; None once its health check, which needs no account, succeeds."""
    try:
        return None if requests.get(f"{tracking(state)}/health", timeout=5).ok else "/health answers with an error"
    except requests.RequestException as exc:
        return type(exc).__name__


def create_account(places: Places, state: State) -> None:
    """Create the account for searches unless it exists.

    Raises:
        SearchError: The server rejects the request.
    """
    admin = Rest(tracking(state), (ADMIN, admin_password(places)))
    if admin.call("GET", "users/get", username=ACCOUNT).ok:
        return
    made = admin.call("POST", "users/create", username=ACCOUNT, password=account_password(places))
    if not made.ok:
        raise SearchError(f"MLflow cannot create account '{ACCOUNT}': {made.status_code} {made.text}")


def _database(postgres: Postgres, name: str) -> str:
    return postgres.url(name).replace("postgresql://", "postgresql+psycopg://", 1)
