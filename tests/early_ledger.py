"""A ledger as it was at an earlier time."""

from typing import Any

from evosearch.search.ledger.ledger import Ledger


class EarlyLedger:
    """A ledger without the events from a number on.

    Args:
        ledger: The ledger, open.
        end: First number of an event that is left out; it may be raised.
    """

    def __init__(self, ledger: Ledger, end: int) -> None:
        self._ledger, self.end = ledger, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def events(self, search_id: str, *more: Any, **options: Any) -> list[Any]:
        """The events before `end`."""
        return [event for event in self._ledger.events(search_id, *more, **options) if event.seq < self.end]

    def stream(self, search_id: str, after: int = 0) -> list[Any]:
        """Those of them after one."""
        return [event for event in self.events(search_id) if event.seq > after]
