"""Connection to Ray: a local Ray started for this process, or an existing cluster. Every call has a time limit.

The cluster is that of `workers.address`, or of `$RAY_ADDRESS`, which Ray sets inside a job. The address must be one
that the user named: its cluster gets the token, and decides what this process runs.
"""

import atexit
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from evosearch.errors import SpecError
from evosearch.execution import token
from evosearch.execution.faults import first_line
from evosearch.execution.ray_settings import (
    folder_place,
    has_token,
    load_ray,
    on_loopback,
    own_signals,
    reload_token,
    secure_environment,
    set_defaults,
)
from evosearch.origins import Secret, how_to_allow, may_receive, origin_of
from evosearch.private_folder import PrivateFolder

NAMESPACE = "evosearch"
FOLDER = "evosearch-ray-"  # start of the name of a local Ray's folder, for its owner only
INNER = "r"  # folder in it that Ray uses, and gives the mode 0777
REACH_S = 10.0  # time limit for the first answer of a cluster
PROBE_S = 2.0  # time limit for connecting to the port of a known head node


def address_of(address: str | None) -> str | None:
    """Return the address of the cluster to join: the spec's, or else the current Ray job's; None for a local Ray."""
    return address or os.environ.get("RAY_ADDRESS") or None


class Cluster:
    """The Ray cluster that this process is connected to.

    Args:
        own: Folder of a Ray that this process started, which `leave` stops; None for a cluster that it joined.
        head: HOST, PORT of its head node, which is probed; None to skip probing.
    """

    def __init__(self, own: PrivateFolder | None, head: tuple[str, int] | None) -> None:
        self._own, self._head = own, head
        self._silent_since: float | None = None
        self._probed_at = 0.0

    def silent_for(self) -> float | None:
        """Return the seconds since the first failed probe of the head node; None while it answers.

        An answering head is probed on every call, so that a caller can use Ray afterwards without hanging. A failed
        probe may take PROBE_S seconds, so its result is cached for as long.
        """
        if self._head is None:
            return None
        now = time.monotonic()
        if self._silent_since is None or now - self._probed_at >= PROBE_S:
            answers = _answers(self._head, PROBE_S)
            self._silent_since = None if answers else now if self._silent_since is None else self._silent_since
            self._probed_at = time.monotonic()
        return None if self._silent_since is None else now - self._silent_since

    def nodes(self) -> list[dict[str, Any]]:
        """Return all nodes, including former ones, as `ray.nodes()` does. Call it only while the head node answers."""
        import ray

        found: list[dict[str, Any]] = ray.nodes()
        return found

    def ended(self) -> str | None:
        """Return why the Ray that this process started has no living node; None while it has one.

        Nobody adds a node to it. A cluster's nodes may come back. Call it only while the head node answers.
        """
        nodes = [] if self._own is None else self.nodes()
        if not nodes or any(node["Alive"] for node in nodes):
            return None
        return first_line(nodes[-1].get("DeathReasonMessage") or "") or "no reason is known"

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return total and free resources of the living nodes."""
        import ray

        return ray.cluster_resources(), ray.available_resources()

    def free(self) -> list[dict[str, float]]:
        """Return the free resources of each living node."""
        from ray._private.state import available_resources_per_node

        return list(available_resources_per_node().values())

    def groups(self) -> Sequence[Mapping[str, float]] | None:
        """Return the resources of one node of each kind that an autoscaler could add; None without an autoscaler."""
        from ray._private.state import state

        config = state.get_cluster_config()
        if config is None or not config.node_group_configs:
            return None
        return [dict(group.resources) for group in config.node_group_configs if group.max_count != 0]

    def lost_nodes(self) -> dict[str, str]:
        """Return node id → reason of its loss, for all lost nodes."""
        if self.silent_for() is not None:
            return {}
        return {node["NodeID"]: node.get("DeathReasonMessage") or "" for node in self.nodes() if not node["Alive"]}

    def leave(self) -> None:
        """Stop Ray if this process started it, and remove its folder."""
        if self._own is not None:
            _stop(self._own)


def start_local(token_file: Path, cpus: int | None = None) -> PrivateFolder:
    """Start Ray on this machine for this process: with a token, on loopback only, in a private folder.

    Returns:
        The folder, which is removed when this process ends, if not before.
    """
    secure_environment(token_file)
    import ray

    folder = PrivateFolder.make(FOLDER, folder_place(FOLDER, INNER))
    atexit.register(_stop, folder)
    try:
        with on_loopback():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                namespace=NAMESPACE,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder.path / INNER),
            )
    except BaseException:
        _stop(folder)
        raise
    return folder


def _stop(folder: PrivateFolder) -> None:
    """Stop the Ray of a folder, and remove the folder; without effect if that was done."""
    atexit.unregister(_stop)
    if folder.path.exists():
        import ray

        ray.shutdown()
        folder.remove()


def connect(token_file: Path, address: str | None, cpus: int | None) -> Cluster:
    """Join the cluster at an address, or start a local Ray without one.

    Args:
        token_file: File for the token of a local Ray.
        address: Address of a head node, or None.
        cpus: CPUs of a local Ray; None for all.

    Raises:
        SpecError: There is no such cluster, only a file names it, it refuses the token, or Ray does not start. Raised
            within seconds.
    """
    set_defaults()
    ray = load_ray()
    if ray.is_initialized():
        return Cluster(None, _endpoint(ray.get_runtime_context().gcs_address))
    where = f"workers.address: {address}" if address else "workers"
    own: PrivateFolder | None = None
    try:
        with own_signals():
            if address is None:
                own = start_local(token_file, cpus)
            else:
                _join(address, where)
    except SpecError:
        raise
    except Exception as exc:  # Ray raises plain Exception if its own node is slow to start
        what = f"Ray did not start: {first_line(exc)}"
        if address is None:
            advice = "Run the same command when the machine is less busy, or set `workers: {executor: local}`"
        else:
            advice = "Check `ray status`"
        raise SpecError(where, what, next=advice) from exc
    return Cluster(own, _endpoint(ray.get_runtime_context().gcs_address))


def _join(address: str, where: str) -> None:
    if not has_token():
        what = f"no token for this cluster in {token.SOURCES}"
        raise SpecError(where, what, next="Set one of them to the cluster's token")
    reload_token()
    if address == "auto":
        address = _detected(where)
    head = _endpoint(address)
    if head is None:
        what = "not the address of a Ray cluster"
        allowed = "HOST:PORT of its head node, as `ray start` prints it"
        raise SpecError(where, what, allowed, "From a machine outside the cluster, use: evosearch submit")
    _refuse_unnamed(address, where)
    if not _answers(head, REACH_S):
        what = f"no answer within {REACH_S:.0f} s"
        next = "Check that the head node is running and that its port is reachable from here; see `ray status`"
        raise SpecError(where, what, next=next)
    hidden = _is_loopback(head[0]) and not _answers((_own_ip(), head[1]), PROBE_S)
    with on_loopback() if hidden else nullcontext():  # otherwise Ray looks for it at this machine's other address
        _enter(address, where)


def _detected(where: str) -> str:
    """Return the address for `auto`: $RAY_ADDRESS, or that of a Ray on this machine, which may be another user's.

    Raises:
        SpecError: There is none.
    """
    from ray._private import services

    try:
        found = services.canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if not found or found == "auto":
        raise SpecError(where, "no Ray cluster on this machine", next="Set RAY_ADDRESS to HOST:PORT of its head node")
    return str(found)


def _refuse_unnamed(address: str, where: str) -> None:
    """Check that the user named the cluster. Without that it is not joined at all, not even without a token.

    Raises:
        SpecError: The user did not.
    """
    place = origin_of(address, "ray")
    if not may_receive(Secret.RAY, place):
        what = f"the cluster at {address} is not joined: it would get a token, and could run code here"
        raise SpecError(where, what, next=how_to_allow(Secret.RAY, place, address))


def _enter(address: str, where: str) -> None:
    from ray import init
    from ray._private import services

    _check_access(services.canonicalize_bootstrap_address(address) or address, where)
    if not services.find_node_ids():
        what = "a search must run on a node of the cluster, and this machine is not one"
        raise SpecError(where, what, next="Submit it instead: evosearch submit SPEC --address http://HOST:8265")
    init(address=address, log_to_driver=False, logging_level="ERROR", namespace=NAMESPACE)


def _check_access(address: str, where: str) -> None:
    """Send one request in a thread, since Ray's own calls hang for minutes if something other than Ray answers.

    Raises:
        SpecError: The cluster does not answer, or refuses the token.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    results: list[Exception | None] = []

    def request() -> None:
        try:
            GcsClient(address=address).internal_kv_get(b"session_name", b"session", timeout=REACH_S)
        except Exception as exc:
            results.append(exc)
        else:
            results.append(None)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(REACH_S)
    if not results:
        raise SpecError(where, "not a Ray cluster", "HOST:PORT of its head node (by default 6379)")
    if isinstance(results[0], ray.exceptions.AuthenticationError):
        next = "Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN to the token"
        raise SpecError(where, "the cluster refuses the token", next=next) from results[0]
    if results[0] is not None:
        raise SpecError(where, f"the cluster does not answer: {first_line(results[0])}", next="See `ray status`")


def _endpoint(address: str) -> tuple[str, int] | None:
    """Return HOST, PORT of an address; None for other kinds (`auto`, `ray://…`, `http://…`)."""
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
