"""MLflow's own UI on the store of a search."""

import shlex
import sys

from evosearch.credentials import hidden
from evosearch.errors import TrackingError
from evosearch.tracking.client import ARTIFACTS, sqlite_file


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """The command that starts MLflow's own server on a store, on this machine only.

    It needs `ui_environment` too. A database's URI with a password goes there, where `ps` does not show it.

    Raises:
        TrackingError: the store is itself a server.
    """
    if uri.startswith(("http://", "https://")):
        where = hidden(uri)
        raise TrackingError("tracking.uri", f"{where} is a server already", next=f"Open {where} in a browser")
    store = [] if hidden(uri) != uri else ["--backend-store-uri", uri]
    database = sqlite_file(uri)
    artifacts = ["--default-artifact-root", (database.parent / ARTIFACTS).as_uri()] if database else []
    network = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *network]


def ui_environment(uri: str = "") -> dict[str, str]:
    """What `ui_command` needs in its environment besides the present one."""
    apart = {} if hidden(uri) == uri else {"MLFLOW_BACKEND_STORE_URI": uri}
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"} | apart


def ui_line(uri: str, port: int = 5000) -> str:
    """The same as one line for a shell, with any password left out."""
    environment = [f"{name}={shlex.quote(hidden(value))}" for name, value in ui_environment(uri).items()]
    return " ".join([*environment, shlex.join(ui_command(uri, port))])
