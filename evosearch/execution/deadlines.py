"""When a worker that does not answer is given up: by what answers have taken so far."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Patience:
    """How long a job may take. The defaults are for real models; times are seconds.

    Attributes:
        start: until a worker that has its place is built: it may have to fetch and copy large models, or wait for the
            one on its node that does.
        first: while nothing is measured: the first job of a large model on a cold disk must have time to end.
        floor: a job may take as long in any case, so that a pause of the machine kills nobody.
        factor: how many times the slowest seconds per item seen are granted; a candidate that rambles generates longer.
    """

    start: float = 4 * 3600.0
    first: float = 4 * 3600.0
    floor: float = 600.0
    factor: float = 10.0


@dataclass
class Deadlines:
    """Seconds per item that this pool's jobs took, and what follows for the next ones.

    A job with n items may take  max(floor, factor · max_j(t_j / n_j) · n)  seconds, t_j and n_j of the jobs scored so
    far. One that failed says nothing: it may have ended before any item was scored.
    """

    patience: Patience = field(default_factory=Patience)
    _slowest: float = 0.0  # seconds per item
    _total_s: float = 0.0
    _total_items: int = 0

    def observe(self, items: int, seconds: float) -> None:
        """A job with so many items was scored after so long."""
        items = max(1, items)
        self._slowest = max(self._slowest, seconds / items)
        self._total_s += seconds
        self._total_items += items

    def limit(self, items: int) -> float:
        """Seconds after which a job with so many items is answered by nobody."""
        if not self._total_items:
            return self.patience.first
        return max(self.patience.floor, self.patience.factor * self._slowest * max(1, items))

    def typical(self, items: int) -> float | None:
        """Seconds that a job with so many items takes on average, None while nothing is measured."""
        return self._total_s / self._total_items * max(1, items) if self._total_items else None
