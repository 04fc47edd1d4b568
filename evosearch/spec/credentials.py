"""Passwords and tokens stay out of specs: these are shared, recorded and shown; the programs find secrets elsewhere."""

import re
from typing import Annotated
from urllib.parse import parse_qsl

import sqlalchemy as sa
from pydantic import AfterValidator, Field

from evosearch.errors import SpecError

SECRET_KEYS = ("password", "passwd", "pwd", "sslpassword", "token", "access_token", "secret")
POSTGRES = "Leave it out: PostgreSQL's client takes it from ~/.pgpass, $PGPASSFILE or $PGPASSWORD"
HTTP = "Leave it out: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def without_credentials(url: str) -> str:
    """A URL as it is, where it holds no secret.

    Raises:
        SpecError: it does; the message does not repeat it.
    """
    web = re.match(r"\s*https?:", url, re.IGNORECASE)
    found = _in_web_address(url) if web else _in_database_url(url)
    if found is None:
        return url
    allowed = "scheme://HOST:PORT" if web else "scheme://USER@HOST:PORT/DATABASE"
    raise SpecError("", f"{found}, and a spec is no place for one", allowed, HTTP if web else POSTGRES)


def _in_web_address(url: str) -> str | None:
    """A name may be a token, and so may any setting: our servers know none, and others call them as they like."""
    account, at, _ = url.rpartition("@")
    if at:
        return "holds a password" if ":" in account.partition("//")[2] else "holds a name"
    query = url.partition("?")[2]
    return _secret_under(query) or ("holds settings after '?', which may be secrets" if query else None)


def _in_database_url(url: str) -> str | None:
    """By SQLAlchemy's reading, which decides what is connected to; what that cannot read is taken at its worst."""
    try:
        parsed = sa.make_url(url)
        password, keys = parsed.password is not None, "&".join(parsed.query)
    except (sa.exc.ArgumentError, ValueError):
        password, keys = ":" in url.rpartition("@")[0].partition("//")[2], url.partition("?")[2]
    return _secret_under(keys) or ("holds a password" if password else None)


def _secret_under(query: str) -> str | None:
    keys = [key for key, _ in parse_qsl(query, keep_blank_values=True) if key.lower() in SECRET_KEYS]
    return f"holds a secret under '{keys[0]}'" if keys else None


Url = Annotated[str, Field(min_length=1), AfterValidator(without_credentials)]
