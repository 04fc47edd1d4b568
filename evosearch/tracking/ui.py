"""MLflow's UI on the store of a search, on this machine, with an account for this one start."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import make_url

from evosearch.errors import TrackingError
from evosearch.private_folder import PrivateFolder
from evosearch.redaction import hidden
from evosearch.search.ledger.server_access import limited_environment
from evosearch.tracking import table_statistics
from evosearch.tracking.client import ARTIFACTS, check_scheme, sqlite_file
from evosearch.tracking.server import ACCOUNTS_APP, ADMIN, accounts_config, check_installed, network

FOLDER = "evosearch-ui-"  # start of the name of the folder with the accounts
STOP_S = 10.0  # between SIGTERM and SIGKILL


def ui_command(uri: str, port: int = 5000, accounts: bool = False) -> list[str]:
    """Return the command that starts MLflow's server on a store, reachable from this machine only.

    It also needs `ui_environment`, which passes a database URI with a password, so that `ps` does not show it.

    Args:
        uri: The store.
        port: Port on 127.0.0.1.
        accounts: Whether requests need an account.

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
    app = ACCOUNTS_APP if accounts else ()
    return [sys.executable, "-m", "mlflow", "server", *app, *store, *artifacts, *network(port)]


def ui_environment(uri: str = "") -> dict[str, str]:
    """Return the environment variables that `ui_command` needs in addition to the current ones."""
    store = {} if hidden(uri) == uri else {"MLFLOW_BACKEND_STORE_URI": uri}
    passwords = limited_environment(make_url(uri)) if uri.startswith("postgresql") else {}
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"} | store | passwords


def serve(uri: str, port: int, started: Callable[[str, str], None]) -> int:
    """Serve a store until the server ends or this process is interrupted.

    Args:
        uri: The store.
        port: Port on 127.0.0.1.
        started: Called with the name and the random password of the only account, which end with the server.

    Returns:
        The server's exit code.

    Raises:
        TrackingError: See `ui_command`.
        InputError: The packages for accounts are not installed.
    """
    command = ui_command(uri, port, accounts=True)
    check_installed("evosearch ui")
    table_statistics.refresh(uri)
    with PrivateFolder.make(FOLDER) as folder:
        password = secrets.token_urlsafe(18)
        environment = {"PYTHONWARNINGS": "ignore"} | os.environ | ui_environment(uri)  # MLflow's own deprecations
        environment |= _accounts(folder.path, password)
        server = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 (our own command)
        try:
            started(ADMIN, password)
            return server.wait()
        finally:
            _stop(server)


def _accounts(folder: Path, password: str) -> dict[str, str]:
    """Write the config of a server's accounts; return the environment variables that name it."""
    config = folder / "accounts.ini"
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(accounts_config(f"sqlite:///{folder / 'accounts.db'}", password))
    return {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32)}


def _stop(server: "subprocess.Popen[bytes]") -> None:
    """End a server with all of its processes, which are in a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_S)
