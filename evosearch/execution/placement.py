"""Whether workers will ever get a place, and what to say while they wait for one."""

import time
from collections.abc import Callable, Mapping

from evosearch.execution.cluster import Cluster
from evosearch.execution.demand import Demand, refuse_what_never_fits, shown

REFUSE_S = 30.0  # without a first worker, until it is asked whether there can be one: nodes join one by one
TELL_S, TELL_AGAIN_S = 60.0, 300.0  # without any worker, until that is said, and until it is said again
SLOW_S, SLOW_AGAIN_S = 300.0, 1800.0  # with workers that only start, until that is said, and until it is said again


class Outlook:
    """Watches workers that have no place.

    Args:
        notice: called with a sentence for whoever watches.
        fixed: so many workers are asked for that each of them is missed; otherwise some always wait for a node.
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
        self._told: float | None = None  # when
        self._told_slow: float | None = None  # when
        self._any_placed = self._refused_nothing = False

    def placed(self) -> None:
        """A worker has got a place."""
        self._any_placed = True
        self._waiting_since = self._told = None

    def look(self, pending: int, there: int) -> None:
        """Say, now and then, that nobody scores, or that workers are missing.

        Args:
            pending: workers that are asked for and have no place.
            there: workers that have one.

        Raises:
            SpecError: no worker had a place yet, and no node could ever hold one.
        """
        if not pending or (there and not self._fixed):
            self._waiting_since = self._told = None
            return
        now = self._clock()
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        if waited > REFUSE_S and not self._any_placed and not self._refused_nothing:
            refuse_what_never_fits(self._demand, self._cluster.nodes(), self._cluster.groups())
            self._refused_nothing = True
        if waited > TELL_S and (self._told is None or (not there and now - self._told > TELL_AGAIN_S)):
            self._told = now
            self._notice(self._sentence(pending, there))

    def look_at_starts(self, starting: Mapping[str, float], ready: int) -> None:
        """Say, now and then, that nobody scores because those who have a place are not built yet.

        Args:
            starting: worker → when it got its place, by the clock.
            ready: workers that can score.
        """
        if ready or not starting:
            self._told_slow = None
            return
        now = self._clock()
        first = min(starting, key=lambda name: starting[name])
        waited = now - starting[first]
        if waited > SLOW_S and (self._told_slow is None or now - self._told_slow > SLOW_AGAIN_S):
            self._told_slow = now
            self._notice(
                f"no worker can score yet: {len(starting)} start, {first} for {waited / 60:.0f} min now. Each fetches "
                "and copies models, or waits for the process on its node that does: locks/prepare in its cache names it"
            )

    def _sentence(self, pending: int, there: int) -> str:
        missing = (
            f"{pending} of the workers asked for wait for room"
            if there
            else f"no worker has a place, {pending} wait for one"
        )
        asked = f"each takes {self._demand}"
        has, free = self._cluster.resources()
        return f"{missing}: {asked}; the cluster has {shown(has)}, of which {shown(free)} free"
