"""A recorded search, read back from its ledger."""

from evosearch.errors import LedgerError
from evosearch.search.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.service.paths import Places


def read_search(ledger: Ledger, places: Places) -> tuple[str, SearchState]:
    """The search of these places: its id and its folded events.

    Raises:
        LedgerError: the ledger has no search of that name.
    """
    info = ledger.search_by_name(places.name)
    if info is None:
        known = ", ".join(entry.name for entry in ledger.searches()) or "none"
        raise LedgerError(places.name, "no such search in its ledger", f"There: {known}", "Run it first")
    return info.search_id, SearchState.from_events(ledger.events(info.search_id))
