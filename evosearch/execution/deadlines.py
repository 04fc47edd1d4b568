"""Deadlines for starts and jobs, derived from how long earlier jobs took."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timeouts:
    """Time limits in seconds. The defaults suit large models.

    Attributes:
        start: For building a placed worker, which may fetch and copy large models or wait for another worker that does.
        first: For a job before any job was scored: a large model on a cold disk.
        floor: Minimum for any job, so that a pause of the machine does not kill workers.
        factor: Multiple of the slowest seconds per item seen so far; some candidates generate longer answers.
    """

    start: float = 4 * 3600.0
    first: float = 4 * 3600.0
    floor: float = 600.0
    factor: float = 10.0


@dataclass
class Deadlines:
    """Time limits of jobs, from the seconds per item of the jobs scored so far.

    A job with n items may take  max(floor, factor · max_j(t_j / n_j) · n)  seconds, over the jobs j scored so far.
    Failed jobs are left out: they may have ended before any item was scored.
    """

    timeouts: Timeouts = field(default_factory=Timeouts)
    _slowest: float = 0.0  # seconds per item
    _total_s: float = 0.0
    _total_items: int = 0

    def observe(self, items: int, seconds: float) -> None:
        """Record that a job with so many items was scored in so many seconds."""
        items = max(1, items)
        self._slowest = max(self._slowest, seconds / items)
        self._total_s += seconds
        self._total_items += items

    def limit(self, items: int) -> float:
        """Return the seconds after which a job with so many items is given up."""
        if not self._total_items:
            return self.timeouts.first
        return max(self.timeouts.floor, self.timeouts.factor * self._slowest * max(1, items))

    def typical(self, items: int) -> float | None:
        """Return the average seconds of a job with so many items, or None before any job was scored."""
        return self._total_s / self._total_items * max(1, items) if self._total_items else None
