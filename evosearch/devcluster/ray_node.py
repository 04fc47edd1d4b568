"""One Ray node of a cluster, as a process: `python -m evosearch.devcluster.ray_node SETTINGS` runs until it is told to stop.

`ray start` will not do: it replaces 127.0.0.1 by the machine's own address, and its servers then listen on every
interface. Made this way, as `ray.cluster_utils` makes the nodes of its tests, all of them listen on loopback only.
SETTINGS is JSON, what `RayParams` takes; without `gcs_address` the node is the head.
"""

import json
import signal
import sys
import time
from types import FrameType

from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.utils import write_ray_address

POLL_S = 0.5


def main() -> int:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, _end)
    ensure_token_if_auth_enabled(None, create_token_if_missing=False)
    node = Node(RayParams(**settings), head="gcs_address" not in settings, shutdown_at_exit=False, spawn_reaper=True)
    # Where Ray looks for the address that it gives to jobs; without it, any cluster of this machine is taken
    write_ray_address(node.gcs_address, node.get_temp_dir_path())
    try:
        while not (dead := node.dead_processes()):
            time.sleep(POLL_S)
        print(f"ended: {', '.join(f'{kind} ({process.returncode})' for kind, process in dead)}", flush=True)
        return 1
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=True)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
