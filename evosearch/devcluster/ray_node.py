"""One Ray node as a process that runs until SIGTERM: `python -m evosearch.devcluster.ray_node SETTINGS`.

`ray start` is not used, because it replaces 127.0.0.1 by the machine's own address, and its servers then listen on all
interfaces. A node that is created in this way, as in `ray.cluster_utils`, listens on loopback only. SETTINGS are the
arguments of `RayParams` as JSON; without `gcs_address` the node is the head.
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
    """Run the node; return the exit code."""
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, _end)
    ensure_token_if_auth_enabled(None, create_token_if_missing=False)
    node = Node(RayParams(**settings), head="gcs_address" not in settings, shutdown_at_exit=False, spawn_reaper=True)
    # Ray passes the address in this file to jobs; without the file, that of any cluster on this machine
    write_ray_address(node.gcs_address, node.get_temp_dir_path())
    try:
        while not (dead := node.dead_processes()):
            time.sleep(POLL_S)
        sys.stdout.write(f"ended: {', '.join(f'{kind} ({process.returncode})' for kind, process in dead)}\n")
        sys.stdout.flush()
        return 1
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=True)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
