"""Connections to PostgreSQL: which password goes to which server, and which settings a URL may contain.

The client library sends $PGPASSWORD to every server, in clear if the server asks for that. Every connection that
SQLAlchemy opens in this process is therefore limited here, for ledgers and for MLflow's own databases.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from evosearch.errors import InputError, LedgerError
from evosearch.origins import Origin, Secret, how_to_allow, may_receive, origin

DRIVERS = ("psycopg", "psycopg2")  # they use libpq, to which the settings below belong
# Settings of a URL in a file. All others could move the connection (hostaddr, service) or read files (passfile, sslkey)
QUERY_KEYS = (
    "application_name",
    "connect_timeout",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "sslmode",
    "tcp_user_timeout",
)
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")  # the stricter, the later
NO_FILE = "/dev/null/none"  # libpq skips a password file that cannot exist without a word
SCRAM = "scram-sha-256"  # the server never sees the password, and proves that it knows it


def check_url(url: sa.URL) -> str | None:
    """Return what is wrong with a PostgreSQL URL from a file; None if nothing is."""
    driver = url.drivername.partition("+")[2]
    if driver and driver not in DRIVERS:
        return f"got the driver '{driver}'"
    if refused := [key for key in url.query if key not in QUERY_KEYS]:
        return f"got the setting '{refused[0]}'"
    if any(not isinstance(value, str) for value in url.query.values()):
        return "a setting is given twice"
    if any(character in (url.host or "") for character in ",/@%"):
        return f"got the host '{url.host}'"
    if url.query.get("sslmode", "prefer") not in SSL_MODES:
        return "got an unknown sslmode"
    return None


ALLOWED = f"One host, and of settings only {', '.join(QUERY_KEYS)}. Give others by PG* variables"


def refuse_settings(url: sa.URL, where: str, error: type[InputError] = LedgerError) -> None:
    """Check the settings of a PostgreSQL URL from a file.

    Raises:
        InputError: It has a setting, a driver or a list of hosts that is not allowed; raised as `error`.
    """
    if (what := check_url(url)) is not None:
        raise error(where, what, ALLOWED)


def withheld(url: sa.URL) -> str | None:
    """Return a sentence on a password of the user that is kept from a server; None if none is."""
    given = bool(os.environ.get("PGPASSWORD")) or _wildcard_in_file()
    if url.password or not given or _is_users_own(url.host, url.port) or _host_in_file(url.host):
        return None
    return how_to_allow(Secret.POSTGRES, _origin(url.host, url.port), url.render_as_string())


def limited(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return libpq settings that send a password only to a server that the user named for it, and only by SCRAM.

    $PGPASSWORD goes to $PGHOST and the servers in EVOSEARCH_HOSTS; a password in a file goes to the host of its line. A
    wildcard in place of a host counts for named servers only. $PGREQUIREAUTH and $PGSSLMODE stay the user's.
    """
    found = dict(settings)
    host, port = found.get("host"), found.get("port")
    password = bool(found.get("password"))
    if not password:
        if _is_users_own(host, port):
            password = bool(os.environ.get("PGPASSWORD")) or _host_in_file(host) or _wildcard_in_file()
        else:
            found["password"] = ""  # otherwise libpq takes $PGPASSWORD
            password = _host_in_file(host)
            if not password:
                found["passfile"] = NO_FILE
    if not os.environ.get("PGREQUIREAUTH"):
        found["require_auth"] = SCRAM if password else f"{SCRAM},none"
    modes = [mode for mode in (found.get("sslmode"), os.environ.get("PGSSLMODE")) if mode in SSL_MODES]
    if modes:
        found["sslmode"] = max(modes, key=SSL_MODES.index)
    return found


def limited_environment(url: sa.URL) -> dict[str, str]:
    """Return the PG* variables with which another program that opens a URL is limited in the same way."""
    names = {"password": "PGPASSWORD", "passfile": "PGPASSFILE", "require_auth": "PGREQUIREAUTH"}
    wanted = limited({"host": url.host, "port": url.port} | ({"password": url.password} if url.password else {}))
    return {
        name: wanted[key] for key, name in names.items() if key in wanted and not (key == "password" and url.password)
    }


@sa.event.listens_for(sa.Engine, "do_connect")
def _limit(dialect: sa.Dialect, record: Any, arguments: Any, settings: dict[str, Any]) -> None:
    if dialect.name == "postgresql":
        settings.update(limited(settings))


def _is_users_own(host: str | None, port: Any) -> bool:
    """Return whether the user named a server: by $PGHOST, EVOSEARCH_HOSTS, or by default this machine's socket."""
    named = os.environ.get("PGHOST", "")
    if not host and not port:
        return True  # libpq uses the user's own
    if not host and named:
        return all(_is_users_own(one, port) for one in named.split(","))
    if not host or host.startswith("/"):  # a Unix socket
        default = os.environ.get("PGPORT") or "5432"
        return (host or "") in named.split(",") and str(port or default) == default
    return may_receive(Secret.POSTGRES, _origin(host, port))


def _origin(host: str | None, port: Any) -> Origin | None:
    default = os.environ.get("PGPORT", "")
    number = str(port or default or "5432")
    return origin("postgresql", host or "", int(number)) if number.isdecimal() else None


def _host_in_file(host: str | None) -> bool:
    return any(name == (host or "localhost") for name in _hosts_in_file())


def _wildcard_in_file() -> bool:
    return "*" in _hosts_in_file()


def _hosts_in_file() -> list[str]:
    """Return the hosts of the user's password file."""
    named = os.environ.get("PGPASSFILE")
    try:
        text = (Path(named) if named else Path.home() / ".pgpass").read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError, ValueError):
        return []
    hosts = []
    for line in text.splitlines():
        host, escaped = "", False
        for character in line:
            if character == ":" and not escaped:
                break
            escaped = character == "\\" and not escaped
            host += "" if escaped else character
        if host and not host.startswith("#"):
            hosts.append(host)
    return hosts
