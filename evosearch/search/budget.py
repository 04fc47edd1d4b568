"""When a search stops asking. Everything here follows from the ledger and the clock, so a resume stops the same."""

import time
from dataclasses import dataclass

from evosearch.search.candidates import Candidates
from evosearch.search.state import SearchState

NOTHING_NEW = 256  # duplicates in a row, after which a search whose budget does not count candidates ends


@dataclass(frozen=True)
class Budget:
    """Reasons to stop asking, whichever comes first; what was asked is scored and told in any case.

    Attributes:
        candidates: asked, duplicates too.
        hours: over all sessions of the search, the time between them not counted.
        items: item evaluations of asked candidates: duplicates take none, baselines are not counted.
        target: a fitness that the optimizer was told of a candidate that breaks no guard.
        patience: candidates told since the best was.
    """

    candidates: int | None = None
    hours: float | None = None
    items: int | None = None
    target: float | None = None
    patience: int | None = None

    def reason(self, asked: Candidates) -> str | None:
        """Why to stop asking now, in a word; None to go on."""
        state = asked.state
        if self.target is not None and state.best_reported is not None:
            violation, loss = state.best_reported
            if violation == 0 and -loss >= self.target:
                return "target"
        if self.candidates is not None and state.proposed >= self.candidates:
            return "candidates"
        if self.items is not None and self.items - asked.items_taken() < asked.items_of(state.proposed):
            return "items"
        if self.hours is not None and hours(state) >= self.hours:
            return "hours"
        if self.patience is not None and state.reported_since_best >= self.patience:
            return "patience"
        if self.candidates is None and state.repeated >= NOTHING_NEW:
            return f"nothing new: {NOTHING_NEW} duplicates in a row"
        return None

    def room(self, wanted: int, asked: Candidates) -> int:
        """How many of the `wanted` next candidates the budget allows."""
        first = asked.state.proposed
        if self.candidates is not None:
            wanted = min(wanted, self.candidates - first)
        if self.items is not None:
            left = self.items - asked.items_taken()
            for index in range(wanted):
                left -= asked.items_of(first + index)
                if left < 0:
                    return index
        return wanted

    def total(self, asked: Candidates) -> int | None:
        """How many candidates there will be, as far as the budget tells; None where only the clock does."""
        totals = [self.candidates] if self.candidates is not None else []
        if self.items is not None:
            left = max(0, self.items - asked.items_taken())
            totals.append(asked.state.proposed + left // asked.items_of(asked.state.proposed))
        return min(totals, default=None)


def hours(state: SearchState) -> float:
    """Of all sessions up to now, in hours."""
    return (state.seconds_before + max(0.0, time.time() - state.last_time)) / 3600.0
