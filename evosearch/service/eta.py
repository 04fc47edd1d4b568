"""When a search that has just begun will end: said once, as soon as its first baselines are scored.

They are the trial that `check` makes of one candidate: the run is at work already, on the workers that it will have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from evosearch.preflight.forecast import Done, of_pace, pace_of
from evosearch.search.protocols import Executor
from evosearch.search.recorder import Recorder
from evosearch.setup.executors import worker_count
from evosearch.setup.prepare import Prepared

SCORED = 2  # the first also lays out what stays


@dataclass
class Foretelling:
    """A tracker that tells whoever watches, and then no more.

    Args:
        gate: the search ends at the gate; see `cost`.
    """

    prepared: Prepared
    recorder: Recorder
    executor: Executor
    gate: bool
    _left: int = field(default=SCORED, init=False)
    _known: set[tuple[str, str]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._known = set(self.recorder.state.cards)

    def notify(self) -> None:
        if self._left == 0:
            return
        state = self.recorder.state
        new = [key for key in state.cards if key[1] == "search" and key not in self._known]
        self._known |= set(new)
        self._left = max(0, self._left - len(new))
        if self._left == 0:
            self._tell(state.cards[new[-1]].seconds)

    def close(self, timeout_s: float) -> None:
        self._left = 0

    def _tell(self, seconds: Mapping[str, float]) -> None:
        prepared, watcher = self.prepared, self.recorder.watcher
        count, _ = worker_count(prepared.spec.config.workers)
        pace = pace_of(prepared, seconds, count or self.executor.slots)
        found = of_pace(prepared, pace, lambda text: None, self.gate, Done.of(self.recorder.state))
        rate, hours = found["candidates_per_hour"], found["total_hours"]
        price = f", for {found['price']:.2f}" if "price" in found else ""
        watcher.note(
            f"about {rate:,.0f} candidates an hour with {pace.workers} workers: {hours:.1f} hours, until "
            f"{found['ends']}{price}"
        )
