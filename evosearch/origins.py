"""Servers that may receive a secret: only origins that the user named, never those that only a file names.

An origin is scheme, host and port. The user names it by a variable of the environment or on the command line; specs,
suites, recipes and records name servers too, but may come from elsewhere.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from enum import Enum

from evosearch.errors import InputError
from evosearch.redaction import hidden

HOSTS = "EVOSEARCH_HOSTS"  # origins that may receive every secret for their scheme
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433, "ray": 6379}  # default ports
SCHEME = re.compile(r"[a-z][a-z0-9.-]*")
# Programs disagree on backslashes, spaces and several '@': such an address has no origin
ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9.-]*)(?:\+\w+)?://)?(?:[^/?#\\@\s]*@)?"
    r"(?P<host>\[[0-9a-f:.]+\]|[^/?#\\@:\[\]\s]+)(?::(?P<port>[0-9]{1,5}))?(?:[/?#][^\\@\s]*)?",
    re.IGNORECASE,
)
LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Secret(Enum):
    """A secret: its name in messages, the scheme of addresses without one, and the variables that name its servers."""

    POSTGRES = ("PostgreSQL password", "postgresql", ("PGHOST",))
    MLFLOW = ("MLflow account", "http", ("MLFLOW_TRACKING_URI",))
    HUB = ("Hugging Face token", "https", ("HF_ENDPOINT",))
    RAY = ("Ray token", "ray", ("RAY_ADDRESS",))  # a dashboard is named by --address or EVOSEARCH_ADDRESS only

    def __init__(self, what: str, scheme: str, variables: tuple[str, ...]) -> None:
        self.what, self.scheme, self.variables = what, scheme, variables


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port in canonical form."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


_by_hand: set[tuple[Secret, Origin]] = set()  # named on the command line of this process


def origin_of(address: str, scheme: str = "") -> Origin | None:
    """Return the origin of a URL, or of HOST[:PORT]; None if programs could disagree on it.

    Args:
        address: URL or HOST[:PORT]; user, path and query are ignored.
        scheme: Scheme of an address without one.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        return None
    kind = (found["scheme"] or scheme).lower()
    return origin(kind, found["host"], int(found["port"]) if found["port"] else None)


def origin(scheme: str, host: str, port: int | None = None) -> Origin | None:
    """Return the origin with these parts; None if the host has no canonical form or the port is missing or invalid."""
    name = canonical_host(host)
    number = port if port is not None else PORTS.get(scheme)
    if name is None or number is None or not 0 < number < 1 << 16 or not SCHEME.fullmatch(scheme):
        return None
    return Origin(scheme, name, number)


def canonical_host(host: str) -> str | None:
    """Return a host in lower case, without trailing dot and brackets, IPv6 compressed, in ASCII.

    None for a host that programs could read differently: an IPv4 address that is not four decimal numbers (`127.1`,
    `0x7f000001`, `0177.0.0.1`), an IPv6 zone, or a name whose IDNA forms could differ.
    """
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]").lower().replace("%", "?")))
        except ValueError:
            return None
    name = host.lower()
    if not name.isascii():
        try:
            encoded = name.encode("idna")
            name, same = encoded.decode("ascii").lower(), encoded.decode("idna") == name
        except UnicodeError:
            return None
        if not same:  # mapped to other characters, by rules that differ between the versions of IDNA
            return None
    labels = name.removesuffix(".").split(".")
    if NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            return None
    return ".".join(labels) if all(LABEL.fullmatch(label) for label in labels) else None


def may_receive(secret: Secret, place: Origin | None) -> bool:
    """Return whether the user named this origin for a secret.

    Raises:
        InputError: EVOSEARCH_HOSTS has an invalid entry.
    """
    return place is not None and ((secret, place) in _by_hand or place in _listed() or place in _in_variables(secret))


def name_by_hand(secret: Secret, address: str) -> None:
    """Permit a secret for the origin of an address that the user gave on the command line."""
    if (place := origin_of(address, secret.scheme)) is not None:
        _by_hand.add((secret, place))


def how_to_allow(secret: Secret, place: Origin | None, address: str) -> str:
    """Return a sentence on why a secret was not sent to an address, and on how to allow it."""
    shown = hidden(address)
    if place is None:
        why = "this form of a host is ambiguous. Write its name or full address"
        return f"Your {secret.what} was not sent to {shown}: {why}"
    named = " or ".join(f"${name}" for name in secret.variables)
    why = f"because only a file names {place}. If you trust it: {HOSTS}={place} (or {named})"
    return f"Your {secret.what} was not sent, {why}"


def _listed() -> set[Origin]:
    """Return the origins of EVOSEARCH_HOSTS.

    Raises:
        InputError: An entry is not an origin.
    """
    found = set()
    for entry in re.split(r"[\s,]+", os.environ.get(HOSTS, "").strip()):
        if not entry:
            continue
        place = origin_of(entry)
        if place is None:
            allowed = "scheme://HOST:PORT of each server, separated by spaces: postgresql://db:5432 http://mlflow:5000"
            raise InputError(HOSTS, f"got '{hidden(entry)}'", allowed)
        found.add(place)
    return found


def _in_variables(secret: Secret) -> set[Origin]:
    if secret is Secret.POSTGRES:
        return _postgres_servers()
    given = [os.environ.get(name, "") for name in secret.variables]
    return {place for address in given if (place := origin_of(address, secret.scheme)) is not None}


def _postgres_servers() -> set[Origin]:
    """Return the servers of PGHOST and PGPORT, each of which may be a list."""
    hosts, ports = (os.environ.get(name, "").split(",") for name in ("PGHOST", "PGPORT"))
    found = set()
    for index, host in enumerate(hosts):
        port = ports[index] if len(ports) == len(hosts) else ports[0]
        place = origin("postgresql", host, int(port) if port.isdecimal() else None)
        if place is not None:
            found.add(place)
    return found
