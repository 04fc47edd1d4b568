"""Ray's process-wide settings: token authentication, no telemetry, loopback only for a local Ray, signal handlers."""

import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evosearch.environment import telemetry_off
from evosearch.execution import token

# "0": Ray uses this machine's loopback address, and listens only there
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Ray's agent, autoscaler and API server serve metrics by HTTP without asking for a token. The last two have no switch;
# with an invalid port, they note an error in their logs and serve none.
NO_METRICS = {
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "65536",
    "DASHBOARD_METRIC_PORT": "65536",
}
# Time until Ray ends a driver whose head node does not answer; replaced by `Cluster.silent_for`
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
FOREVER_S = "864000"
LONGEST = 36  # characters of the path of Ray's folder: those of sockets have 65 more, and the limit is 107


def set_defaults() -> None:
    """Set Ray's environment variables in this process unless the user has set them."""
    telemetry_off()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def secure_environment(token_file: Path) -> None:
    """Turn on token authentication and turn off telemetry, for this process and all processes that Ray starts from it.

    Without a token, anyone who can reach a cluster can run code on it. A token in the environment is used; otherwise
    one is created in `token_file`, readable only by its owner.
    """
    set_defaults()
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        if not token_file.exists():
            _create_token(token_file)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
    reload_token()


def folder_place(name: str, inner: str) -> Path:
    """Return the folder for the folders of local Rays: $RAY_TMPDIR, or that for temporary files.

    Args:
        name: Start of their names, which eight random characters follow.
        inner: Folder in them that Ray uses. If sockets in it would have too long a path, they are in /tmp.
    """
    place = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    return place if len(str(place / name / inner)) + 8 <= LONGEST else Path("/tmp")  # noqa: S108 (they are private)


def _create_token(file: Path) -> None:
    """Write a new token atomically. If another process was faster, its token is kept, since it may be in use."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w") as opened:
            opened.write(secrets.token_hex(32))
        os.link(temporary, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def has_token() -> bool:
    """Return whether there is a token if one is required. Ray would exit the process for a missing or empty file."""
    try:
        return not token.is_required() or token.find() is not None
    except (OSError, ValueError):
        return False


def reload_token() -> None:
    """Make Ray read the token again: it caches the first token of a process, which another cluster would refuse."""
    ray = sys.modules.get("ray")
    if ray is not None and not ray.is_initialized():
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()


def load_ray() -> Any:
    """Import Ray, configured so that a driver survives a silent head node and Ray does not print to standard output."""
    given = RECONNECT in os.environ
    os.environ.setdefault(RECONNECT, FOREVER_S)  # read once, at import
    import ray
    from ray._private import worker

    if not given:
        del os.environ[RECONNECT]  # the processes of a local Ray must not survive it
    worker.print_to_stdstream = _print_nothing  # the pool reports the node failures that affect a search
    return ray


def _print_nothing(*arguments: Any, **named: Any) -> None:
    """Replace Ray's printing to standard output."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Make Ray use 127.0.0.1 as this machine's address, so that all processes that it starts listen only there.

    Nor do they serve metrics, which ask for no token.
    """
    from ray._private import ray_constants

    settings = {LOOPBACK_ONLY: "0", **NO_METRICS}  # for the processes that Ray starts
    before, known = {name: os.environ.get(name) for name in settings}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(settings)
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this process, where Ray may be imported already
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def own_signals() -> Iterator[None]:
    """Restore the signal handlers on exit: with Ray's SIGTERM handler, a search could not record its shutdown."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
