"""How often a test set has been looked at: one record for all searches of a user, or of a shared database.

Every search that opens a test set is one more try at passing it, and a reader of the result has to know how many there
were. A test set is its documents: tasks that are renamed, or grouped otherwise, do not start the count again. Records
of earlier versions are known by a digest of names and groups too, and count where that is the same.

A ledger that a spec names by URL keeps the record itself; searches with a ledger file of their own share one file in
the user's data folder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from evosearch.errors import LedgerError
from evosearch.evaluation.types import ItemBatch
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.spec.run_dir import data_folder


def times_opened(ledger: Ledger, state: SearchState) -> int:
    """How often searches have opened a search's test set so far, on any record that can be read here.

    Other searches may have opened it since: a reader has to know of those, too.
    """
    digest = state.circumstances.batches.get("test")
    if state.test_openings:
        digest = state.test_openings[-1].digest
    counts = [opening.count for opening in state.test_openings if opening.digest == digest]
    if digest is not None:
        sets = state.circumstances.item_sets.get("test", {}).values()
        batch = ItemBatch("test", tuple(ledger.item_set(one) for one in sets))
        digests = [digest, batch.documents_digest] if sets else [digest]
        counts.append(ledger.count_test_openings(*digests))
        counts.append(_in_users_file(digests))
    return max(counts, default=0)


def _in_users_file(digests: Sequence[str]) -> int:
    path = data_folder() / "openings.db"
    if not path.is_file():
        return 0
    try:
        with Ledger.open(f"sqlite:///{path}", "test openings", read_only=True) as own:
            return own.count_test_openings(*digests)
    except LedgerError:  # somebody else's file, say: the search's own record still counts
        return 0


@contextmanager
def openings(ledger: Ledger | None = None, shared: bool = False) -> Iterator[Ledger]:
    """Where openings are counted: the search's own ledger where that is shared, else the user's file."""
    if ledger is not None and shared:
        yield ledger
        return
    with Ledger.open(f"sqlite:///{data_folder() / 'openings.db'}", "test openings") as own:
        yield own


def record_reread(batch: ItemBatch, what: str) -> int:
    """Put on record that somebody looked at a test set outside a search.

    Returns:
        How often searches have opened it; a reading does not raise that number.
    """
    with openings() as record:
        record.append(batch.digest, [("reread", {"digest": batch.digest, "what": what})])
        return record.count_test_openings(batch.digest, batch.documents_digest)
