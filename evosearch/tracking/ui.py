"""Commands that start MLflow's UI on the store of a search."""

import shlex
import sys

from sqlalchemy.engine import make_url

from evosearch.errors import TrackingError
from evosearch.redaction import hidden
from evosearch.search.ledger.server_access import limited_environment
from evosearch.tracking.client import ARTIFACTS, check_scheme, sqlite_file


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """Return the command that starts MLflow's server on a store, reachable from this machine only.

    It also needs `ui_environment`, which passes a database URI with a password, so that `ps` does not show it.

    Raises:
        TrackingError: The store is itself a server, or see `check_scheme`.
    """
    if uri.startswith(("http://", "https://")):
        where = hidden(uri)
        raise TrackingError("tracking.uri", f"{where} is already a server", next=f"Open {where} in a browser")
    check_scheme(uri)
    store = [] if hidden(uri) != uri else ["--backend-store-uri", uri]
    database = sqlite_file(uri)
    artifacts = ["--default-artifact-root", (database.parent / ARTIFACTS).as_uri()] if database else []
    network = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *network]


def ui_environment(uri: str = "") -> dict[str, str]:
    """Return the environment variables that `ui_command` needs in addition to the current ones."""
    store = {} if hidden(uri) == uri else {"MLFLOW_BACKEND_STORE_URI": uri}
    passwords = limited_environment(make_url(uri)) if uri.startswith("postgresql") else {}
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"} | store | passwords


def ui_line(uri: str, port: int = 5000) -> str:
    """Return command and environment as one shell line, without passwords."""
    environment = [f"{name}={shlex.quote(hidden(value))}" for name, value in ui_environment(uri).items()]
    return " ".join([*environment, shlex.join(ui_command(uri, port))])
