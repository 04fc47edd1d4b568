"""Budgets, which depend only on the ledger and a clock, so that a resumed search stops for the same reason.

Hours are measured by the monotonic clock, which no adjustment of the time of day can move.
"""

import time
from dataclasses import dataclass

from evosearch.search.candidates import Candidates
from evosearch.search.state import SearchState

AHEAD = 64  # candidates whose mean number of items is used to predict how many more a budget allows
NOTHING_NEW = 256  # consecutive duplicates that end a search whose budget does not count candidates


@dataclass(frozen=True)
class Budget:
    """Limits of a search. When the first is reached, no more candidates are proposed; pending ones are still scored.

    Attributes:
        candidates: Number of candidates, duplicates included, answers not. Each shard of a gradient step is one.
        hours: Duration of all sessions, without the time between them.
        items: Item evaluations of candidates; a gradient takes three per item, duplicates none. Baselines and answers
            are not counted.
        target: Reported fitness of a candidate that breaks no guard.
        patience: Number of candidates reported since the best one.
    """

    candidates: int | None = None
    hours: float | None = None
    items: int | None = None
    target: float | None = None
    patience: int | None = None

    def reason(self, candidates: Candidates) -> str | None:
        """Return why to stop asking now, None to continue."""
        state = candidates.state
        if self.target is not None and state.best_reported is not None:
            violation, loss = state.best_reported
            if violation == 0 and -loss >= self.target:
                return "target"
        if self.candidates is not None and state.proposed >= self.candidates:
            return "candidates"
        if self.items is not None and self.items - candidates.items_taken() < candidates.items_of(state.proposed):
            return "items"
        if self.hours is not None and hours(state) >= self.hours:
            return "hours"
        if self.patience is not None and state.reported_since_best >= self.patience:
            return "patience"
        if self.candidates is None and state.repeated >= NOTHING_NEW:
            return f"nothing new: {NOTHING_NEW} duplicates in a row"
        return None

    def allowed(self, wanted: int, candidates: Candidates) -> int:
        """Return how many of the `wanted` next candidates the budget allows."""
        first = candidates.state.proposed
        if self.candidates is not None:
            wanted = min(wanted, self.candidates - first)
        if self.items is not None:
            left = self.items - candidates.items_taken()
            for index in range(wanted):
                left -= candidates.items_of(first + index)
                if left < 0:
                    return index
        return wanted

    def total(self, candidates: Candidates) -> int | None:
        """Return the final number of candidates, as far as the budget determines it; None if only time does."""
        totals = [self.candidates] if self.candidates is not None else []
        if self.items is not None:
            left = max(0, self.items - candidates.items_taken())
            proposed = candidates.state.proposed
            ahead = sum(candidates.items_of(proposed + index) for index in range(AHEAD))
            totals += [proposed + left * AHEAD // ahead] if ahead else []  # shards may have no items
        return min(totals, default=None)


def hours(state: SearchState) -> float:
    """Return the duration of all sessions up to now, in hours; for the process that recorded the last event."""
    return (state.seconds_before + max(0.0, time.monotonic() - state.last_clock)) / 3600.0
