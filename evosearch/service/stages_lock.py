"""Lock of a multi-stage run on this machine, held also between two of its stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evosearch.errors import LedgerError
from evosearch.search.ledger.lock import file_lock, file_lock_holder

STAGES = "stages"  # the lock file's name in the run directory starts with it
ALL = "all"


@contextmanager
def running(folder: Path, where: str) -> Iterator[None]:
    """Hold the lock of the multi-stage run in this run directory.

    Raises:
        LedgerError: Another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        what = f"cannot create the folder {folder}: {exc.strerror}"
        raise LedgerError(where, what, next="Choose a folder you may write to") from None
    with file_lock(folder / STAGES, ALL, where):
        yield


def runner(folder: Path) -> str | None:
    """The process that holds the lock, given the run directory or a stage's folder in it."""
    return file_lock_holder(folder / STAGES, ALL) or file_lock_holder(folder.parent / STAGES, ALL)
