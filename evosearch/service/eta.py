"""ETA of a search that has just started, from the time that its first baselines took."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from evosearch.durations import clock, duration
from evosearch.preflight.forecast import Done, forecast_at, measured_pace
from evosearch.search.protocols import Executor
from evosearch.search.recorder import Recorder
from evosearch.setup.executors import worker_count
from evosearch.setup.prepare import Prepared

WAIT_FOR = 2  # baselines to be scored first: the first one also includes one-time work


@dataclass
class Eta:
    """Tracker that prints an ETA once, after the first two baselines are scored."""

    prepared: Prepared
    recorder: Recorder
    executor: Executor
    _left: int = field(default=WAIT_FOR, init=False)
    _known: set[tuple[str, str]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._known = set(self.recorder.state.cards)

    def notify(self) -> None:
        """Count new score cards on the search split, and print the ETA when there are enough."""
        if self._left == 0:
            return
        state = self.recorder.state
        new = [key for key in state.cards if key[1] == "search" and key not in self._known]
        self._known |= set(new)
        self._left = max(0, self._left - len(new))
        if self._left == 0:
            self._print(state.cards[new[-1]].seconds)

    def close(self, timeout_s: float) -> None:
        """Print nothing from now on."""
        self._left = 0

    def _print(self, seconds: Mapping[str, float]) -> None:
        prepared, watcher = self.prepared, self.recorder.watcher
        count, _ = worker_count(prepared.spec.config.workers)
        pace = measured_pace(prepared, seconds, count or self.executor.slots)
        found = forecast_at(prepared, pace, lambda text: None, Done.of(self.recorder.state))
        rate, hours = found["candidates_per_hour"], found["total_hours"]
        ends = clock(datetime.fromisoformat(found["ends"]).timestamp())
        price = f", for {found['price']:.2f}" if "price" in found else ""
        watcher.note(
            f"about {rate:,.0f} candidates per hour with {pace.workers} "
            f"worker{'s' if pace.workers > 1 else ''}: {duration(3600 * hours)}, "
            f"until {ends}{price}"
        )
