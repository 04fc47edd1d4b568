"""Counts of test set openings: one record for all searches of a user, or of a shared database.

Every search that opens a test set is one more attempt to pass it, so the number of openings is disclosed with every
test score. A test set is identified by its documents, so renamed or regrouped tasks do not restart the count.

A ledger that a spec names by URL keeps the record itself; searches with their own ledger file share one file in the
user's data folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from evosearch.errors import LedgerError
from evosearch.evaluation.types import ItemBatch
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.spec.run_dir import data_folder


def times_opened(ledger: Ledger, state: SearchState) -> int:
    """Return how often the test set of a search has been opened, according to all records readable on this machine.

    This includes openings by other searches since this one ended.
    """
    sets = state.circumstances.item_sets.get("test", {}).values()
    digest = ItemBatch("test", tuple(ledger.item_set(one) for one in sets)).documents_digest
    recorded = [opening.count for opening in state.test_openings if opening.digest == digest]
    return max(*recorded, ledger.count_test_openings(digest), _count_in_user_file(digest))


def _count_in_user_file(digest: str) -> int:
    path = data_folder() / "openings.db"
    if not path.is_file():
        return 0
    try:
        with Ledger.open(f"sqlite:///{path}", "test openings", read_only=True) as own:
            return own.count_test_openings(digest)
    except LedgerError:  # such as a file of another user; the search's own record still counts
        return 0


@contextmanager
def openings(ledger: Ledger | None = None, shared: bool = False) -> Iterator[Ledger]:
    """Open the ledger that counts openings: the search's own if it is shared, otherwise the user's file."""
    if ledger is not None and shared:
        yield ledger
        return
    with Ledger.open(f"sqlite:///{data_folder() / 'openings.db'}", "test openings") as own:
        yield own


def record_reread(batch: ItemBatch, what: str) -> int:
    """Record that a test set was read outside a search.

    Args:
        batch: The items that were read.
        what: The command to record.

    Returns:
        How often searches have opened the test set, without rereads.
    """
    digest = batch.documents_digest
    with openings() as record:
        record.append(digest, [("reread", {"digest": digest, "what": what})])
        return record.count_test_openings(digest)
