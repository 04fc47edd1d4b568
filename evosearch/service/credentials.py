"""Passwords and tokens stay out of specs: these are shared, recorded and shown; the programs find secrets elsewhere."""

from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

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
    try:
        parts = urlsplit(url)
        name, password = parts.username, parts.password
    except ValueError:  # no URL: whoever opens it says so
        return url
    web = parts.scheme in ("http", "https")
    keys = [key for key, _ in parse_qsl(parts.query) if key.lower() in SECRET_KEYS]
    if password is None and not keys and not (web and name is not None):
        return url
    what = (
        f"holds a secret under '{keys[0]}'" if keys else "holds a password" if password is not None else "holds a name"
    )
    allowed = "scheme://HOST:PORT" if web else "scheme://USER@HOST:PORT/DATABASE"
    raise SpecError("", f"{what}, and a spec is no place for one", allowed, HTTP if web else POSTGRES)


Url = Annotated[str, Field(min_length=1), AfterValidator(without_credentials)]
