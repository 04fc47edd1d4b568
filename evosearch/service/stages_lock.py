"""Who runs a spec of stages on this machine: told between two of its searches, too, where none of them is held."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evosearch.errors import LedgerError
from evosearch.search.ledger.lock import file_lock, file_lock_holder

STAGES = "stages"  # a lock file's name in the folder of the whole begins with it
ALL = "all"


@contextmanager
def running(folder: Path, where: str) -> Iterator[None]:
    """Be the one process that runs the stages whose folder this is.

    Raises:
        LedgerError: another one does, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        what = f"the folder {folder} cannot be made: {exc.strerror}"
        raise LedgerError(where, what, next="Choose a folder you may write to") from None
    with file_lock(folder / STAGES, ALL, where):
        yield


def runner(folder: Path) -> str | None:
    """The process that does, by the folder of the whole or of one stage."""
    return file_lock_holder(folder / STAGES, ALL) or file_lock_holder(folder.parent / STAGES, ALL)
