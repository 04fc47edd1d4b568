"""Placement of workers: warnings while they wait for a node or are starting, and an error if none fits on any node."""

import time
from collections.abc import Callable, Mapping

from evosearch.execution.demand import Demand, check_feasible, shown
from evosearch.execution.ray_cluster import Cluster

REFUSE_S = 30.0  # without a placed worker until the nodes are checked; nodes join one by one
WARN_S, WARN_AGAIN_S = 60.0, 300.0  # without a placed worker until the first warning, and between warnings
SLOW_S, SLOW_AGAIN_S = 300.0, 1800.0  # the same for placed workers that are starting


class Placement:
    """Monitor of workers that are not placed or have not started.

    Args:
        cluster: The cluster of the workers.
        demand: Resources of one worker.
        notice: Called with a sentence for the user.
        fixed: A fixed number of workers is requested, so every missing one is reported. Otherwise some workers are
            always pending, for an autoscaler.
        clock: Returns seconds on a monotonic clock.
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
        self._warned: float | None = None  # time of the last warning
        self._warned_slow: float | None = None  # the same for slow starts
        self._any_placed = self._checked_nodes = False

    def placed(self) -> None:
        """Record that a worker has been placed."""
        self._any_placed = True
        self._waiting_since = self._warned = None

    def check(self, pending: int, placed: int) -> None:
        """Warn at intervals while workers are missing.

        Args:
            pending: Number of requested workers that are not placed.
            placed: Number of placed workers.

        Raises:
            SpecError: No worker has been placed yet, and a worker fits on no node.
        """
        if not pending or (placed and not self._fixed):
            self._waiting_since = self._warned = None
            return
        now = self._clock()
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        if waited > REFUSE_S and not self._any_placed and not self._checked_nodes:
            check_feasible(self._demand, self._cluster.nodes(), self._cluster.groups())
            self._checked_nodes = True
        if waited > WARN_S and (self._warned is None or (not placed and now - self._warned > WARN_AGAIN_S)):
            self._warned = now
            self._notice(self._sentence(pending, placed))

    def check_starts(self, starting: Mapping[str, float], ready: int) -> None:
        """Warn at intervals while no candidate is scored because all placed workers are still starting.

        Args:
            starting: Worker → time at which it was placed.
            ready: Number of workers that can score.
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
                f"no worker can score yet: {len(starting)} starting, {first} for {waited / 60:.0f} min. A starting "
                "worker fetches and copies models, or waits for the process on its node that does; locks/prepare in "
                "the cache names that process"
            )

    def _sentence(self, pending: int, placed: int) -> str:
        missing = (
            f"{pending} of the requested workers are waiting for free resources"
            if placed
            else f"no worker is placed yet, {pending} are waiting for free resources"
        )
        has, free = self._cluster.resources()
        return f"{missing}: each takes {self._demand}; the cluster has {shown(has)}, free: {shown(free)}"
