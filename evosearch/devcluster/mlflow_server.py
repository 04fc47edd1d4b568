"""MLflow server of a cluster, with accounts and one worker process; its data is in PostgreSQL and in the folder."""

import os
import sys
from importlib.util import find_spec

import requests

from evosearch.devcluster.mlflow_rest import Rest
from evosearch.devcluster.places import Places, State
from evosearch.devcluster.postgres import Postgres
from evosearch.devcluster.private import secret, write_private
from evosearch.devcluster.process_environment import ACCOUNT, inherited, tracking
from evosearch.devcluster.processes import HOST
from evosearch.environment import TELEMETRY_OFF
from evosearch.errors import InputError, SearchError

ADMIN = "admin"
STORE, ACCOUNTS = "mlflow", "mlflow_auth"  # databases
ACCOUNTS_MODULE = "flask_wtf"  # required by MLflow's accounts, and installed by the extra `server`


def check_installed() -> None:
    """Check that the packages for MLflow's accounts are installed.

    Raises:
        InputError: The extra `server` is not installed.
    """
    if find_spec(ACCOUNTS_MODULE) is None:
        what = f"{sys.executable} has no {ACCOUNTS_MODULE}, which MLflow's accounts need"
        next = "pip install 'evosearch[server]', or in a checkout: ./scripts/setup server"
        raise InputError("evosearch cluster", what, next=next)


def command(places: Places, state: State, postgres: Postgres) -> list[str]:
    """Return the server's command line."""
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
    """Return the server's environment; also write its config file, which contains the administrator's password."""
    config = places.secrets / "mlflow-auth.ini"
    settings = {
        "default_permission": "READ",  # for objects of others; the creator of an object manages it
        "database_uri": _database(postgres, ACCOUNTS),
        "admin_username": ADMIN,
        "admin_password": admin_password(places),
        # Without a cache, every request computes a slow hash; changes by the API still take effect immediately
        "auth_cache_ttl_seconds": "60",
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
