"""How often a test set has been looked at: one record for all searches of a user, or of a shared database.

Every search that opens a test set is one more try at passing it, and a reader of the result has to know how many there
were. A ledger that a spec names by URL keeps the record itself; searches with a ledger file of their own share one file
in the user's data folder.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evosearch.search.ledger import Ledger


def data_folder() -> Path:
    """$EVOSEARCH_DATA, or `evosearch` in the user's data folder."""
    own = os.environ.get("EVOSEARCH_DATA")
    if own:
        return Path(own).resolve()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "evosearch"


@contextmanager
def openings(ledger: Ledger | None = None, shared: bool = False) -> Iterator[Ledger]:
    """Where openings are counted: the search's own ledger where that is shared, else the user's file."""
    if ledger is not None and shared:
        yield ledger
        return
    with Ledger.open(f"sqlite:///{data_folder() / 'openings.db'}", "test openings") as own:
        yield own


def record_reread(digest: str, what: str) -> int:
    """Put on record that somebody looked at a test set outside a search.

    Returns:
        How often searches have opened it; a reading does not raise that number.
    """
    with openings() as record:
        record.append(digest, [("reread", {"digest": digest, "what": what})])
        return record.count_test_openings(digest)
