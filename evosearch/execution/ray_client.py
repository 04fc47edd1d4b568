"""HTTP client of a Ray dashboard: requests with time limits and an explicit token, errors as `ClusterError`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from evosearch.errors import ClusterError
from evosearch.execution import token

CONNECT_S, ANSWER_S = 5.0, 60.0  # time limits of a request; Ray needs seconds for the first job of a cluster
NOT_READY = "No available agent"  # in the answer of a head that has just started
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# By default Ray returns a hundred nodes in arbitrary order, including dead ones; this is the highest limit it allows
LIVING = {
    "limit": "10000",
    "filter_keys": "state",
    "filter_predicates": "=",
    "filter_values": "ALIVE",
}


class Dashboard:
    """The dashboard of one cluster.

    Args:
        address: URL of the dashboard.

    Raises:
        ClusterError: The URL is invalid or there is no token. `calls` also raises it if the cluster does not answer in
            time or refuses the token.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        url = _split(self.address)
        if url is None or url.scheme not in ("http", "https") or not url.hostname:
            raise ClusterError("--address", f"got '{address}'", "The URL of a Ray dashboard: http://HOST:8265")
        if url.username or url.password:
            allowed = f"A token: {token.SOURCES}"
            raise ClusterError("--address", "contains a password", allowed, "Remove the part before the '@'")
        self._host = url.hostname
        self._token = _token()
        with self.calls():
            self.client = _client(self.address, self._token, self._host)

    @property
    def sends_token(self) -> bool:
        """Whether requests carry a token."""
        return self._token is not None

    @property
    def in_the_clear(self) -> bool:
        """Whether the token is sent unencrypted over the network."""
        return self.address.startswith("http:") and self._host not in LOOPBACK and self.sends_token

    def answers_without_token(self) -> bool:
        """Return whether the cluster lists its jobs without a token."""
        import requests

        options = _bounded(self._host)
        with self.calls():
            answer = requests.get(f"{self.address}/api/jobs/", timeout=options.pop("timeout"), **options)
            return bool(answer.ok and not answer.is_redirect)

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Convert every error of a request to a ClusterError."""
        import ray

        try:
            yield
        except ray.exceptions.AuthenticationError as exc:
            problem = "refuses the token" if self.sends_token else "requires a token"
            what, allowed = f"the cluster at {self.address} {problem}", f"The cluster's token, in {token.SOURCES}"
            raise ClusterError("--address", what, allowed, "Check which of these is set") from exc
        except OSError as exc:  # the base of requests' errors too
            raise self._unreachable(exc) from exc
        except (RuntimeError, ValueError, KeyError, TypeError) as exc:
            if NOT_READY in str(exc):
                what = f"the head of the cluster at {self.address} is still starting"
                raise ClusterError("--address", what, next="Try again in a minute") from exc
            what = f"unexpected answer from {self.address}: {_last_line(exc)}"
            raise ClusterError("--address", what, next="Check the address, and the log of the cluster's head") from exc

    def _unreachable(self, exc: Exception) -> ClusterError:
        what = f"no cluster answers at {self.address} ({type(exc).__name__})"
        next = "Check that the cluster is running and that its dashboard's port is reachable from here"
        return ClusterError("--address", what, "The URL of its Ray dashboard: http://HOST:8265", next)


def _split(address: str) -> SplitResult | None:
    try:
        return urlsplit(address)
    except ValueError:  # such as an unclosed bracket
        return None


def _token() -> str | None:
    """Return the token to send, or None with RAY_AUTH_MODE=disabled.

    Raises:
        ClusterError: A token is required and there is none.
    """
    if not token.is_required():
        return None
    try:
        found = token.find()
    except (OSError, ValueError) as exc:
        what = f"cannot read {os.environ['RAY_AUTH_TOKEN_PATH']}: {_last_line(exc)}"
        raise ClusterError("RAY_AUTH_TOKEN_PATH", what, token.SOURCES) from None
    if found is None:
        what, next = "no token is set for the cluster", "Ask the cluster's administrator for its token"
        raise ClusterError("RAY_AUTH_TOKEN_PATH", what, f"A token in {token.SOURCES}", next)
    return found


def _client(address: str, sent: str | None, host: str) -> Any:
    """Create Ray's client with time limits, and without RAY_ADDRESS overriding the address."""
    from ray.job_submission import JobSubmissionClient

    for noisy in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{noisy}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **_bounded(host), **options)

        def nodes(self) -> list[dict[str, Any]]:
            listed = self._do_request("GET", "/api/v0/nodes", params=LIVING).json()
            found: list[dict[str, Any]] = listed["data"]["result"]["result"]
            return found

    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        # Without this header, even an empty one, Ray adds its own, by the RAY_AUTH_MODE at its first import
        return Client(address, headers={"Authorization": f"Bearer {sent}" if sent else ""})
    finally:
        os.environ.update(kept)


def _bounded(host: str) -> dict[str, Any]:
    """Return the options of every request: time limits, no redirects, and no proxy for this machine.

    A redirect could lead to a server that the user did not name.
    """
    options: dict[str, Any] = {"timeout": (CONNECT_S, ANSWER_S), "allow_redirects": False}
    return options | ({"proxies": {"http": None, "https": None}} if host in LOOPBACK else {})


def _last_line(exc: BaseException) -> str:
    """Return the last line of an error; in a server's traceback, it names the cause."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip(" .")]
    return (lines[-1] if lines else type(exc).__name__)[:300]
