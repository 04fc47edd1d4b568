"""A recorded search that is read again and again while it grows."""

import time
from dataclasses import dataclass, field

from evosearch.reporting.page.facts import Facts
from evosearch.reporting.status import SearchProgress, progress_of
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState


@dataclass
class Watched:
    """One search of a ledger; `refresh` reads what is new.

    Attributes:
        ledger: The ledger.
        search_id: The search.
        holder: The process that runs it; None if there is none.
    """

    ledger: Ledger
    search_id: str
    holder: str | None = None
    _events: list[Event] = field(default_factory=list)
    _state: SearchState = field(default_factory=SearchState)

    def refresh(self) -> Facts:
        """Read new events, and return the search as it is now.

        Raises:
            LedgerError: The ledger is damaged or unreachable.
        """
        for event in self.ledger.stream(self.search_id, after=self._state.last_seq):
            self._events.append(event)
            self._state.apply(event)
        self.holder = self.ledger.holder(self.search_id)
        return Facts(self.ledger, self.search_id, tuple(self._events), self._state)

    @property
    def ended(self) -> bool:
        """Whether the search has stopped, and no process holds it."""
        return self._state.stopped is not None and self.holder is None

    def progress(self) -> SearchProgress:
        """Return the progress within the budget, and the speed while it runs."""
        return progress_of(self._events, self._state, time.time(), self.holder is not None)
