"""Deadlines of worker starts and jobs; a job's deadline follows from the durations of earlier jobs."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timeouts:
    """Time limits in seconds. The defaults suit large models.

    Attributes:
        start: For building a placed worker, which may fetch and copy large models or wait for another worker that does.
        first: For jobs until the first one is scored: a large model may be read from a cold disk.
        floor: Minimum for any job, so that a short pause of the machine does not kill workers.
        factor: Multiple of the slowest seconds per item so far, since some candidates generate longer answers.
    """

    start: float = 4 * 3600.0
    first: float = 4 * 3600.0
    floor: float = 600.0
    factor: float = 10.0


@dataclass
class Deadlines:
    """Time limits of jobs.

    A job with n items may take  max(floor, factor · max_j(t_j / n_j) · n)  seconds, where j runs over the jobs scored
    so far. Failed jobs are ignored, because they may have ended before any item was scored.
    """

    timeouts: Timeouts = field(default_factory=Timeouts)
    _slowest: float = 0.0  # seconds per item
    _total_s: float = 0.0
    _total_items: int = 0

    def observe(self, items: int, seconds: float) -> None:
        """Record the number of items and the duration of a scored job."""
        items = max(1, items)
        self._slowest = max(self._slowest, seconds / items)
        self._total_s += seconds
        self._total_items += items

    def limit(self, items: int) -> float:
        """Return the time limit of a job with this many items, in seconds."""
        if not self._total_items:
            return self.timeouts.first
        return max(self.timeouts.floor, self.timeouts.factor * self._slowest * max(1, items))

    def typical(self, items: int) -> float | None:
        """Return the expected duration of a job with this many items in seconds; None before any job was scored."""
        return self._total_s / self._total_items * max(1, items) if self._total_items else None
