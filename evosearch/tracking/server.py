"""Options of an MLflow server on this machine: accounts, and who may send requests."""

import sys
from importlib.util import find_spec

from evosearch.errors import InputError

HOST = "127.0.0.1"
ADMIN = "admin"
ACCOUNTS_APP = ("--app-name", "basic-auth")
ACCOUNTS_MODULE = "flask_wtf"  # required by MLflow's accounts, and installed by its extra `auth`


def check_installed(where: str) -> None:
    """Check that the packages for MLflow's accounts are installed.

    Raises:
        InputError: They are not.
    """
    if find_spec(ACCOUNTS_MODULE) is None:
        what = f"{sys.executable} has no {ACCOUNTS_MODULE}, which MLflow's accounts need"
        raise InputError(where, what, next="pip install flask-wtf, or in a checkout: ./scripts/setup")


def network(port: int) -> list[str]:
    """Return the options for a server that only this machine reaches, and only under its own names.

    The Host header is checked, so that a web page cannot reach it by a name that it resolves to this machine; the
    Origin header, so that it cannot send it forms.
    """
    hosts = f"{HOST}:{port},localhost:{port}"
    origins = f"http://{HOST}:{port},http://localhost:{port}"
    address = ["--host", HOST, "--port", str(port), "--workers", "1"]
    return [*address, "--allowed-hosts", hosts, "--cors-allowed-origins", origins]


def accounts_config(database: str, password: str) -> str:
    """Return the config file of MLflow's accounts, which contains the administrator's password.

    Args:
        database: SQLAlchemy URL of the accounts' database.
        password: Password of `ADMIN`, which the server creates at its first start.
    """
    settings = {
        "default_permission": "READ",  # for objects of others; the creator of an object manages it
        "database_uri": database,
        "admin_username": ADMIN,
        "admin_password": password,
        # Without a cache, every request computes a slow hash; changes by the API still take effect immediately
        "auth_cache_ttl_seconds": "60",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    return "[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())
