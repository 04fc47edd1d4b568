"""Ray nodes of a cluster: command lines, GPUs and health."""

import json
import os
import sys
from typing import Any

import requests

from evosearch.devcluster.places import Places, State
from evosearch.devcluster.process_environment import dashboard
from evosearch.devcluster.processes import HOST
from evosearch.errors import InputError

HEAD = "head"
OBJECT_STORE = 128 * 2**20  # bytes; only for recipes and score cards, never for weights
SEARCHES = {"evosearch_search": 1}  # resource of the head: number of searches that run at the same time
TIMEOUT_S = 5.0


def worker(index: int) -> str:
    """Return the name of a worker node; the index starts at 1."""
    return f"node-{index}"


def command(places: Places, state: State, name: str) -> list[str]:
    """Return the command line of a worker node, or of the head, which runs searches but no workers."""
    settings: dict[str, Any] = {
        "node_name": name,
        "node_ip_address": HOST,
        # One folder per node: raylets that start in the same folder disturb each other
        "temp_dir": str(state.ray_folder(places) / name),
        "object_store_memory": OBJECT_STORE,
        "dashboard_agent_listen_port": 0,
        "min_worker_port": 0,
        "max_worker_port": 0,
    }
    if name == HEAD:
        settings |= {"num_cpus": 0, "num_gpus": 0, "resources": SEARCHES, "gcs_server_port": state.ports["ray"]}
        settings |= {"include_dashboard": True, "dashboard_host": HOST, "dashboard_port": state.ports["dashboard"]}
    else:
        settings |= {"num_cpus": state.cpus_per_node, "num_gpus": state.gpus_per_node}
        settings |= {"gcs_address": f"{HOST}:{state.ports['ray']}"}
    return [sys.executable, "-m", "evosearch.devcluster.ray_node", json.dumps(settings)]


def devices(name: str, each: int) -> dict[str, str]:
    """Return the environment that assigns GPUs to a node: none to the head, and each GPU to only one node."""
    if name == HEAD or each == 0:
        return {"CUDA_VISIBLE_DEVICES": ""}
    index = int(name.rpartition("-")[2]) - 1
    return {"CUDA_VISIBLE_DEVICES": ",".join(cards()[index * each : (index + 1) * each])}


def cards() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES; all if that is not set."""
    indices = [str(index) for index in range(installed())]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not indices:
        return indices
    found: list[str] = []
    for one in filter(None, map(str.strip, named.split(","))):
        if one not in indices and not one.startswith(("GPU-", "MIG-")):
            break  # like CUDA, which ignores all entries from the first invalid one on
        found.append(one)
    return found


def installed() -> int:
    """Return the number of GPUs that the driver reports."""
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    return int(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators())


def check_cards(nodes: int, each: int) -> None:
    """Check that there are enough GPUs.

    Raises:
        InputError: The nodes need more.
    """
    if each and nodes * each > len(found := cards()):
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if named is None else f" (CUDA_VISIBLE_DEVICES={named})"
        what = f"{nodes} nodes with {each} each need {nodes * each} GPUs, but there are {len(found)}{seen}"
        raise InputError("--gpus-per-node", what, next="Use fewer --nodes, fewer --gpus-per-node, or 0 for none")


def problem(places: Places, state: State, name: str) -> str | None:
    """Return why a node is not healthy; None once the head reports it as alive."""
    token = places.token.read_text().strip()
    try:
        url, headers = f"{dashboard(state)}/api/v0/nodes", {"Authorization": f"Bearer {token}"}
        response = requests.get(url, headers=headers, timeout=TIMEOUT_S)
    except requests.RequestException as exc:
        return f"dashboard: {type(exc).__name__}"
    if not response.ok:
        return f"dashboard: {response.status_code}"
    nodes = response.json()["data"]["result"]["result"]
    alive = [node["node_name"] for node in nodes if node["state"] == "ALIVE"]
    return None if name in alive else f"not among the living nodes: {', '.join(alive) or 'none'}"
