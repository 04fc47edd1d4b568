"""Ray as we use it: with a token, without telemetry, on loopback where it is ours, and never waited for without end.

Two modes: a Ray of our own on this machine, for this process; or a cluster that is there, by `workers.address` or by
`$RAY_ADDRESS`, which Ray sets inside a job.
"""

import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from evosearch.environment import telemetry_off
from evosearch.errors import SpecError
from evosearch.execution import token
from evosearch.execution.faults import first_line

NAMESPACE = "evosearch"
REACH_S = 10.0  # until a cluster has answered, or cannot be reached
PROBE_S = 2.0  # until a head node's port has answered
OWN = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray knows this machine by its loopback address, and listens there alone
# How long Ray lets a driver live without its head node before it ends the process. We see to that: see `Cluster.lost`
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
FOREVER_S = "864000"


def address_of(address: str | None) -> str | None:
    """The cluster to join: the spec's, else that of the Ray job that this process is; None: one of our own."""
    return address or os.environ.get("RAY_ADDRESS") or None


def secure_environment(token_file: Path) -> None:
    """Token authentication on, telemetry off, in this process and all that Ray starts from it.

    Whoever reaches a cluster without a token runs code on it. A token that the environment already names is used;
    otherwise one is made in `token_file`, readable by its owner only.
    """
    _settings()
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        if not token_file.exists():
            _make_token(token_file)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
    _show_the_token_named_now()


def _make_token(file: Path) -> None:
    """Write a new token, whole or not at all; where another process is first, its token stays: it may be in use."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # readable by its owner only
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


def start_local(token_file: Path, cpus: int | None = None) -> None:
    """Ray on this machine, for this process: no dashboard, nothing that listens beyond loopback, token on."""
    secure_environment(token_file)
    import ray

    with on_loopback():
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            namespace=NAMESPACE,
            _node_ip_address="127.0.0.1",
        )


class Cluster:
    """The Ray that this process is connected to.

    Args:
        own: started here, and ended by `leave`.
        head: HOST, PORT of its head node, where whether it lives is asked; None: not asked.
    """

    def __init__(self, own: bool, head: tuple[str, int] | None) -> None:
        self._own, self._head = own, head
        self._silent_since: float | None = None
        self._looked = 0.0

    def silent_for(self) -> float | None:
        """Seconds since the head node was first found not to answer, from 0 on; None while it answers.

        That it answers is asked anew each time, so that whoever goes on to ask Ray is not left waiting; that it does
        not, which may take seconds to find, is believed for as long.
        """
        if self._head is None:
            return None
        now = time.monotonic()
        if self._silent_since is None or now - self._looked >= PROBE_S:
            answers = _answers(self._head, PROBE_S)
            self._silent_since = None if answers else now if self._silent_since is None else self._silent_since
            self._looked = time.monotonic()
        return None if self._silent_since is None else now - self._silent_since

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes that ever were, as `ray.nodes()` describes them. Only while the head node answers."""
        import ray

        found: list[dict[str, Any]] = ray.nodes()
        return found

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """What the nodes that live have in all, and what of it is free."""
        import ray

        return ray.cluster_resources(), ray.available_resources()

    def free(self) -> list[dict[str, float]]:
        """What of each node that lives is free."""
        from ray._private.state import available_resources_per_node

        return list(available_resources_per_node().values())

    def groups(self) -> Sequence[Mapping[str, float]] | None:
        """Resources of one node of each kind that an autoscaler could add; None: there is none that says so."""
        from ray._private.state import state

        config = state.get_cluster_config()
        if config is None or not config.node_group_configs:
            return None
        return [dict(group.resources) for group in config.node_group_configs if group.max_count != 0]

    def lost_nodes(self) -> dict[str, str]:
        """Node id → why it is gone."""
        if self.silent_for() is not None:
            return {}
        return {node["NodeID"]: node.get("DeathReasonMessage") or "" for node in self.nodes() if not node["Alive"]}

    def leave(self) -> None:
        import ray

        if self._own:
            ray.shutdown()


def connect(token_file: Path, address: str | None, cpus: int | None) -> Cluster:
    """Join the cluster at an address, or start Ray here where there is none.

    Args:
        token_file: where the token of a Ray of our own is kept.
        cpus: of a Ray of our own; None: all.

    Raises:
        SpecError: no such cluster, none that takes our token, or Ray does not start. Within seconds.
    """
    _settings()
    ray = _load()
    if ray.is_initialized():
        return Cluster(False, _endpoint(ray.get_runtime_context().gcs_address))
    where = f"workers.address: {address}" if address else "workers"
    try:
        with _own_signals():
            if address is None:
                start_local(token_file, cpus)
            else:
                _join(address, where)
    except SpecError:
        raise
    except Exception as exc:  # the plain class, where a node of its own is slow to come up
        raise SpecError(where, f"Ray did not start: {first_line(exc)}", next="Check `ray status`") from exc
    return Cluster(address is None, _endpoint(ray.get_runtime_context().gcs_address))


def _join(address: str, where: str) -> None:
    if not _has_token():
        what = f"there is no token for it in {token.PLACES}"
        raise SpecError(where, what, next="Set one of them to the cluster's token")
    _show_the_token_named_now()
    head = _endpoint(address)
    if head is None and address != "auto":
        what = "not the address of a Ray cluster"
        allowed = "HOST:PORT of its head node, as `ray start` prints it"
        raise SpecError(where, what, allowed, "From a machine that is no node of it: evosearch submit")
    if head is not None and not _answers(head, REACH_S):
        what = f"nobody answers there within {REACH_S:.0f} s"
        raise SpecError(where, what, next="Is the head node up, and its port open to this machine? See `ray status`")
    hidden = head is not None and _is_loopback(head[0]) and not _answers((_own_ip(), head[1]), PROBE_S)
    with on_loopback() if hidden else nullcontext():  # Ray would look for it by this machine's other address
        _enter(address, where, named=head is not None)


def _enter(address: str, where: str, named: bool) -> None:
    from ray import init
    from ray._private import services

    if named:
        _let_in(services.canonicalize_bootstrap_address(address) or address, where)
    if not services.find_node_ids():
        what = "this machine is no node of it, and a search runs on one"
        raise SpecError(where, what, next="Send it there: evosearch submit SPEC --address http://HOST:8265")
    init(address=address, log_to_driver=False, logging_level="ERROR", namespace=NAMESPACE)


def _let_in(address: str, where: str) -> None:
    """Ask the cluster something, in a thread: Ray's own calls wait for minutes where it is something else that answers.

    Raises:
        SpecError: it does not answer, or not to us.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    found: list[Exception | None] = []

    def ask() -> None:
        try:
            GcsClient(address=address).internal_kv_get(b"session_name", b"session", timeout=REACH_S)
        except Exception as exc:
            found.append(exc)
        else:
            found.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_S)
    if not found:
        raise SpecError(where, "what answers there is no Ray cluster", "HOST:PORT of its head node (by default 6379)")
    if isinstance(found[0], ray.exceptions.AuthenticationError):
        next = "Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN to the token"
        raise SpecError(where, "the cluster refuses our token", next=next) from found[0]
    if found[0] is not None:
        raise SpecError(where, f"the cluster does not answer: {first_line(found[0])}", next="See `ray status`")


def _load() -> Any:
    """Ray, with a driver that outlives a silent head node, and prints nothing: its standard output is for answers."""
    given = RECONNECT in os.environ
    os.environ.setdefault(RECONNECT, FOREVER_S)  # read once, when Ray is loaded
    import ray
    from ray._private import worker

    if not given:
        del os.environ[RECONNECT]  # the processes of a Ray of our own end with it
    worker.print_to_stdstream = _nothing  # of its nodes' troubles the pool tells itself, those that concern a search
    return ray


def _nothing(*arguments: Any, **named: Any) -> None:
    """Say nothing."""


def _settings() -> None:
    telemetry_off()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _has_token() -> bool:
    """Whether there is a token to show: Ray ends the process where a file that is named is missing or empty."""
    try:
        return not token.is_shown() or token.find() is not None
    except (OSError, ValueError):
        return False


def _show_the_token_named_now() -> None:
    """Ray keeps the first token that a process shows; a second Ray in that process, with another, would refuse it."""
    ray = sys.modules.get("ray")
    if ray is not None and not ray.is_initialized():
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def on_loopback() -> Iterator[None]:
    """Within it, Ray takes this machine's address for 127.0.0.1, and what it starts listens there alone."""
    from ray._private import ray_constants

    before, known = os.environ.get(OWN), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[OWN] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, where Ray may be loaded already
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known
        os.environ.pop(OWN)
        if before is not None:
            os.environ[OWN] = before


def _endpoint(address: str) -> tuple[str, int] | None:
    """HOST, PORT of an address, or None where it is of another kind (`auto`, `ray://…`, `http://…`)."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit():
        return None
    return host.strip("[]"), int(port)


def _answers(head: tuple[str, int], timeout_s: float) -> bool:
    try:
        with socket.create_connection(head, timeout=timeout_s):
            return True
    except OSError:
        return False


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _own_ip() -> str:
    from ray._private import services

    found: str = services.node_ip_address_from_perspective()
    return found


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM over and dies of it on the spot; a search that is told to stop puts that on record first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
