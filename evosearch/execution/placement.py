"""Placement of workers: warn while they wait for a node or for their start, and fail if no node could hold one."""

import time
from collections.abc import Callable, Mapping

from evosearch.execution.demand import Demand, refuse_what_never_fits, shown
from evosearch.execution.ray_cluster import Cluster

REFUSE_S = 30.0  # without a first worker, until the nodes are checked; nodes join one by one
WARN_S, WARN_AGAIN_S = 60.0, 300.0  # without any worker, until the first warning, and between warnings
SLOW_S, SLOW_AGAIN_S = 300.0, 1800.0  # the same while workers have a place and only start


class Placement:
    """Watches workers that have no place, or have not started.

    Args:
        cluster: The cluster they wait for.
        demand: Resources of one worker.
        notice: Called with a sentence for the user.
        fixed: A fixed number of workers is requested, so that each missing one matters. Otherwise some always wait for
            an autoscaler.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        cluster: Cluster,
        demand: Demand,
        notice: Callable[[str], None],
        fixed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._demand, self._notice, self._fixed, self._clock = cluster, demand, notice, fixed, clock
        self._waiting_since: float | None = None
        self._warned: float | None = None  # when
        self._warned_slow: float | None = None  # when
        self._any_placed = self._checked_nodes = False

    def placed(self) -> None:
        """Record that a worker has got a place."""
        self._any_placed = True
        self._waiting_since = self._warned = None

    def check(self, pending: int, placed: int) -> None:
        """Warn now and then that workers are missing.

        Args:
            pending: Requested workers that have no place.
            placed: Workers that have one.

        Raises:
            SpecError: No worker has had a place yet, and no node could ever hold one.
        """
        if not pending or (placed and not self._fixed):
            self._waiting_since = self._warned = None
            return
        now = self._clock()
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        if waited > REFUSE_S and not self._any_placed and not self._checked_nodes:
            refuse_what_never_fits(self._demand, self._cluster.nodes(), self._cluster.groups())
            self._checked_nodes = True
        if waited > WARN_S and (self._warned is None or (not placed and now - self._warned > WARN_AGAIN_S)):
            self._warned = now
            self._notice(self._sentence(pending, placed))

    def check_starts(self, starting: Mapping[str, float], ready: int) -> None:
        """Warn now and then that no candidate is scored because placed workers are not built yet.

        Args:
            starting: Worker → when it got its place, by the clock.
            ready: Workers that can score.
        """
        if ready or not starting:
            self._warned_slow = None
            return
        now = self._clock()
        first = min(starting, key=lambda name: starting[name])
        waited = now - starting[first]
        if waited > SLOW_S and (self._warned_slow is None or now - self._warned_slow > SLOW_AGAIN_S):
            self._warned_slow = now
            self._notice(
                f"no worker can score yet: {len(starting)} are starting, {first} for {waited / 60:.0f} min now. Each "
                "fetches and copies models, or waits for the process on its node that does, which is named in the "
                "cache's locks/prepare"
            )

    def _sentence(self, pending: int, placed: int) -> str:
        missing = (
            f"{pending} of the requested workers are waiting for free resources"
            if placed
            else f"no worker has a place yet, {pending} are waiting for one"
        )
        has, free = self._cluster.resources()
        return f"{missing}: each takes {self._demand}; the cluster has {shown(has)}, of which {shown(free)} free"
