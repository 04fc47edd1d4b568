"""Refusal of URLs with passwords or tokens: specs are shared, recorded and shown."""

import re
from typing import Annotated
from urllib.parse import parse_qsl

import sqlalchemy as sa
from pydantic import AfterValidator, Field

from evosearch.errors import SpecError
from evosearch.search.ledger.server_access import refuse_settings

SECRET_KEYS = ("password", "passwd", "pwd", "sslpassword", "token", "access_token", "secret")
OTHER_SERVERS = ("mysql", "mariadb", "mssql", "oracle", "databricks", "databricks-uc")
POSTGRES = "Remove it: the PostgreSQL client reads it from ~/.pgpass, $PGPASSFILE or $PGPASSWORD"
HTTP = "Remove it: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def without_credentials(url: str) -> str:
    """Return the URL if it contains no secret.

    Raises:
        SpecError: It contains one, which the message does not repeat; or it is a database server's, with a setting
            that could move the connection, read a file, or load a driver.
    """
    web = re.match(r"\s*https?:", url, re.IGNORECASE)
    found = _in_web_address(url) if web else _in_database_url(url)
    if found is None:
        if not web:
            _refuse_settings(url)
        return url
    allowed = "scheme://HOST:PORT" if web else "scheme://USER@HOST:PORT/DATABASE"
    raise SpecError("", f"{found}, which must not be in a spec", allowed, HTTP if web else POSTGRES)


def _in_web_address(url: str) -> str | None:
    """Return the possible secret in a web address: a user name may be a token, and so may any query parameter."""
    account, at, _ = url.rpartition("@")
    if at:
        return "contains a password" if ":" in account.partition("//")[2] else "contains a user name"
    query = url.partition("?")[2]
    return _secret_under(query) or ("contains query parameters, which may be secrets" if query else None)


def _in_database_url(url: str) -> str | None:
    """Return the secret in a database URL, as SQLAlchemy parses it; other URLs are searched for a password."""
    try:
        parsed = sa.make_url(url)
        password, keys = parsed.password is not None, "&".join(parsed.query)
    except (sa.exc.ArgumentError, ValueError):
        password, keys = ":" in url.rpartition("@")[0].partition("//")[2], url.partition("?")[2]
    return _secret_under(keys) or ("contains a password" if password else None)


def _refuse_settings(url: str) -> None:
    """Check the settings of a database server's URL; other URLs are accepted."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return
    kind = parsed.drivername.partition("+")[0].lower()
    if kind == "postgresql":
        refuse_settings(parsed, "", SpecError)
    elif kind in OTHER_SERVERS and parsed.query:
        raise SpecError(
            "", f"got the setting '{next(iter(parsed.query))}'", "A URL without settings: SCHEME://USER@HOST/NAME"
        )


def _secret_under(query: str) -> str | None:
    keys = [key for key, _ in parse_qsl(query, keep_blank_values=True) if key.lower() in SECRET_KEYS]
    return f"contains a secret in '{keys[0]}'" if keys else None


Url = Annotated[str, Field(min_length=1), AfterValidator(without_credentials)]
