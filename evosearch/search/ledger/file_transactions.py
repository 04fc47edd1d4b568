"""Transactions on an SQLite file, which another connection may lock for a while.

SQLite itself waits only for `store.SLICE_S`, because Python handles no signal during that wait; longer waits are
repeated attempts. An interrupt is raised between attempts: inside SQLAlchemy, it could leave a transaction half-ended,
or become an AssertionError.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from evosearch.errors import LedgerError, LedgerUnavailableError
from evosearch.search.ledger import store
from evosearch.search.ledger.database_errors import RecordedTwiceError, is_locked, unusable
from evosearch.search.ledger.lock import file_lock, file_lock_holder

Result = TypeVar("Result")
LAST_S = 10.0  # wait of a process that is ending for its last records
PAUSE_S = 0.05  # between attempts


_attempts = 0  # of transactions, now, in the main thread
_postponed = False


def postpone_interrupt() -> bool:
    """Return whether the main thread is in a transaction, which will raise KeyboardInterrupt at its end.

    For signal handlers.
    """
    global _postponed
    _postponed = _attempts > 0
    return _postponed


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Raise a KeyboardInterrupt that was postponed meanwhile at the end."""
    global _attempts, _postponed
    if threading.current_thread() is not threading.main_thread():  # which is not interrupted
        yield
        return
    _attempts += 1
    try:
        yield
    finally:
        _attempts -= 1
        if _postponed and not _attempts:
            _postponed = False
            raise KeyboardInterrupt


class FileTransactions:
    """Transactions on a file."""

    def __init__(self, engine: Engine, url: sa.URL, where: str, read_only: bool, notice: Callable[[str], None]) -> None:
        self._engine, self._url, self._where, self._read_only = engine, url, where, read_only
        self._notice = notice
        self._hurried: float | None = None  # time of the call of `hurry`

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work`, which reads, on one snapshot of the database.

        Raises:
            LedgerError: The database cannot be read.
        """
        return self._when_possible(partial(self._read, work))

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work`, which writes, in one transaction. It may be called several times.

        Raises:
            RecordedTwiceError: It violates a uniqueness constraint, or refers to a row that does not exist.
            LedgerUnavailableError: Another connection has locked the file for `store.BUSY_S`, or the disk is full.
            LedgerError: The database cannot be written.
        """
        assert not self._read_only, "the ledger is opened read-only"
        return self._when_possible(partial(self._write, work))

    def hurry(self) -> None:
        """Wait for at most `LAST_S` from now on, because this process is ending. Safe in signal handlers."""
        self._hurried = time.monotonic()

    def holding(self, search_id: str) -> AbstractContextManager[None]:
        """Hold the lock of a search's writer.

        Raises:
            LedgerError: Another process or this one holds it already.
        """
        return file_lock(self._file, search_id, self._where)

    def holder(self, search_id: str) -> str | None:
        """Return the process that writes to a search, as far as known."""
        return file_lock_holder(self._file, search_id)

    @property
    def _file(self) -> Path:
        path = store.sqlite_path(self._url)
        assert path is not None
        return path

    # --- attempts -----------------------------------------------------------------------------------------------

    def _when_possible(self, attempt: Callable[[], Result]) -> Result:
        """Repeat an attempt while another connection locks the file; when ending, also while the disk is full."""
        began, noticed = time.monotonic(), False
        while True:
            try:
                with _undisturbed():
                    return attempt()
            except sa.exc.IntegrityError as exc:
                raise RecordedTwiceError.of(exc) from exc
            except sa.exc.DBAPIError as exc:
                error = unusable(self._url, self._where, exc)
                left_s = self._ends(began) - time.monotonic()
                if left_s <= 0 or not self._may_pass(exc, error):
                    raise error from exc
                if not noticed:
                    self._notice(f"{error.what}. Waiting for up to {max(1.0, left_s):.0f} s")
                noticed = True
            time.sleep(PAUSE_S)

    def _ends(self, began: float) -> float:
        """Return when the wait of a transaction ends."""
        return began + store.BUSY_S if self._hurried is None else max(began, self._hurried) + LAST_S

    def _may_pass(self, exc: sa.exc.DBAPIError, error: LedgerError) -> bool:
        return is_locked(exc) or (self._hurried is not None and isinstance(error, LedgerUnavailableError))

    def _read(self, work: Callable[[Connection], Result]) -> Result:
        with self._engine.connect() as connection:
            return work(connection)

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        with self._engine.connect().execution_options(evosearch_write=True) as connection, connection.begin():
            return work(connection)
