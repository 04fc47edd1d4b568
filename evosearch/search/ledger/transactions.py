"""Transactions on a ledger's database: immediate on a file, with retries on a server.

Servers restart and networks break. A transaction that fails for such a reason is retried on a new connection for
several minutes. Writers must therefore be able to tell whether an attempt whose answer was lost took effect.

On a server, the locks of searches belong to the single connection that writes. If it is lost, they are taken again
before anything else is written.
"""

import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from evosearch.errors import LedgerError, LedgerUnavailableError
from evosearch.search.ledger.database_errors import is_transient, reason_of, shown, unusable
from evosearch.search.ledger.lock import (
    Holder,
    advisory_holder,
    file_lock,
    file_lock_holder,
    identify,
    release_advisory,
    taken,
    this_process,
    try_advisory,
)
from evosearch.search.ledger.store import sqlite_path
from evosearch.search.ledger.uninterrupted import uninterrupted

Result = TypeVar("Result")
PATIENCE_S = 300.0  # wait of a writer for its server; a restart takes seconds, a failover a minute or two
READERS_PATIENCE_S = 20.0  # wait of a reader, which can simply be started again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0  # between attempts
JUST_ENDED_S = 1.0  # time for a server to notice that a killed process is gone
CUT_OFF_S = 30.0  # time for a server to end a backend after pg_terminate_backend
LAST_S = 4.0  # wait of a writer that is shutting down for its server, and for each answer
WATCH_S = 0.5  # interval of checks for overdue answers


class RecordedTwiceError(AssertionError):
    """A unique record would be written twice: a bug, not a user error."""


class Transactions:
    """Transactions on a file, without retries."""

    def __init__(self, engine: Engine, url: sa.URL, where: str, read_only: bool) -> None:
        self._engine, self._url, self._where, self._read_only = engine, url, where, read_only

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work`, which reads, on one snapshot of the database."""
        try:
            with self._engine.connect() as connection:
                return work(connection)
        except sa.exc.DBAPIError as exc:
            raise unusable(self._url, self._where, exc) from exc

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work`, which writes, in one transaction. On a server it may be called several times.

        An interrupt is raised once a file's transaction has ended. Inside SQLAlchemy it could leave a cursor in a
        reference cycle: SQLite keeps the write lock of such a connection although it is closed, and this process would
        wait for itself.

        Raises:
            RecordedTwiceError: It violates a uniqueness constraint, or refers to a row that does not exist.
            LedgerError: The database cannot be written.
        """
        assert not self._read_only, "the ledger is opened read-only"
        return uninterrupted(partial(self._write, work))

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        try:
            with self._engine.connect().execution_options(evosearch_write=True) as connection, connection.begin():
                return work(connection)
        except sa.exc.IntegrityError as exc:
            raise _twice(exc) from exc
        except sa.exc.DBAPIError as exc:
            raise unusable(self._url, self._where, exc) from exc

    def hurry(self) -> None:
        """Wait only seconds for a server from now on, because this process is ending. Safe in signal handlers."""

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
        path = sqlite_path(self._url)
        assert path is not None
        return path


class ServerTransactions(Transactions):
    """Transactions on a PostgreSQL server, which may be down for a while."""

    def __init__(self, engine: Engine, url: sa.URL, where: str, read_only: bool, notice: Callable[[str], None]) -> None:
        super().__init__(engine, url, where, read_only)
        self._patience_s = READERS_PATIENCE_S if read_only else PATIENCE_S
        self._notice = notice
        self._given_up = False  # after a timeout, fail at once until the server answers again
        self._mutex = threading.RLock()
        self._writer: Connection | None = None
        self._driver: Any = None  # the driver's connection below it
        self._ours: set[tuple[int, Any]] = set()  # backends of our writers, past and present; see `identify`
        self._held: set[str] = set()  # searches
        self._waiting: dict[Any, float] = {}  # driver's connection → start of the wait for its answer
        self._hurried: float | None = None  # time of the call of `hurry`
        sa.event.listen(engine, "do_connect", self._before_connecting)
        _servers.add(self)

    def _before_connecting(self, dialect: Any, record: Any, arguments: Any, settings: dict[str, Any]) -> None:
        if self._hurried is not None:
            settings["connect_timeout"] = int(LAST_S)

    def close(self) -> None:
        """Close all connections and release the locks."""
        with self._mutex:
            self._drop()
        super().close()

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` on one snapshot of the database, with retries."""
        return self._with_retries(partial(self._read, work))

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in one transaction, with retries."""
        assert not self._read_only, "the ledger is opened read-only"
        with self._mutex:
            return self._with_retries(partial(self._write, work))

    def hurry(self) -> None:
        """Wait only seconds for the server from now on."""
        self._patience_s = min(self._patience_s, LAST_S)
        self._hurried = time.monotonic()

    @contextmanager
    def holding(self, search_id: str) -> Iterator[None]:
        """Hold the advisory lock of a search."""
        with self._mutex:
            if search_id in self._held:
                raise taken(self._where, this_process())
            self.write(lambda connection: self._take(connection, search_id))
            self._held.add(search_id)
        done = threading.Event()
        try:
            # Started now, because a signal handler cannot start a thread
            threading.Thread(target=self._watch, args=(done,), name="ledger", daemon=True).start()
            yield
        finally:
            done.set()
            with self._mutex:
                self._held.discard(search_id)
                self._release(search_id)

    def holder(self, search_id: str) -> str | None:
        """Return the process that holds the advisory lock of a search."""
        found = self.read(lambda connection: advisory_holder(connection, search_id))
        return found.about if found else None

    # --- attempts -----------------------------------------------------------------------------------------------

    def _with_retries(self, attempt: Callable[[], Result]) -> Result:
        """Retry an attempt until it succeeds, and return its result."""
        began, pause = time.monotonic(), FIRST_PAUSE_S
        failed = False
        while True:
            try:
                result = attempt()
            except sa.exc.IntegrityError as exc:
                raise _twice(exc) from exc
            except sa.exc.DBAPIError as exc:
                if not is_transient(exc):
                    raise unusable(self._url, self._where, exc) from exc
                waited = time.monotonic() - began
                if self._given_up or waited > self._patience_s:
                    self._given_up = True
                    raise self._unreachable(exc, waited) from exc
                if not failed:
                    self._notice(f"{shown(self._url)}: {reason_of(exc)}. Retrying for {self._patience_s:.0f} s")
                failed = True
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 jitter, so that clients do not retry together
                pause = min(2.0 * pause, LONGEST_PAUSE_S)
            else:
                self._given_up = False
                if failed:
                    self._notice(f"{shown(self._url)}: back after {time.monotonic() - began:.0f} s; nothing was lost")
                return result

    def _unreachable(self, exc: sa.exc.DBAPIError, waited_s: float) -> LedgerError:
        waited = f" for {waited_s:.0f} s" if waited_s > 1.0 else ""
        what = f"{shown(self._url)} cannot be reached{waited}: {reason_of(exc)}"
        next = "Everything recorded is safe. Once the server is back, run the same command to resume"
        return LedgerUnavailableError(self._where, what, next=next)

    def _read(self, work: Callable[[Connection], Result]) -> Result:
        snapshot = self._engine.execution_options(isolation_level="REPEATABLE READ")  # one snapshot for all of `work`
        with snapshot.connect() as connection, self._watched(connection.connection.dbapi_connection):
            return work(connection)

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        connection = self._connected()
        try:
            with self._watched(self._driver), connection.begin():
                return work(connection)
        except (sa.exc.IntegrityError, LedgerError):  # rolled back; the connection keeps its locks
            raise
        except BaseException:  # also an interrupt: the connection would be reused without the locks
            self._drop()
            raise

    # --- the connection that writes, and its locks --------------------------------------------------------------

    def _connected(self) -> Connection:
        if self._writer is None:
            connection = self._engine.connect()
            driver: Any = connection.connection.dbapi_connection
            try:
                connection.detach()  # not shared with readers
                with self._watched(driver), connection.begin():
                    self._ours.add(identify(connection))
                    for search_id in self._held:
                        self._take(connection, search_id)
            except BaseException:
                _close(connection, driver)
                raise
            self._writer, self._driver = connection, driver
        return self._writer

    def _take(self, connection: Connection, search_id: str) -> None:
        """Take a search's lock, also from a lost connection of ours that the server still considers alive.

        Raises:
            LedgerError: Another process holds it.
        """
        began = time.monotonic()
        while not try_advisory(connection, search_id):
            found = advisory_holder(connection, search_id)
            if found is not None:
                ours = self._is_ours(found)
                if time.monotonic() - began > (CUT_OFF_S if ours else JUST_ENDED_S):
                    raise taken(self._where, found.about)
                if ours:
                    connection.execute(sa.select(sa.func.pg_terminate_backend(found.backend)))
            time.sleep(0.05)

    def _is_ours(self, found: Holder) -> bool:
        """Return whether a holder is a lost connection of ours; the start time distinguishes reused process ids."""
        return (found.backend, found.since) in self._ours

    def _release(self, search_id: str) -> None:
        if self._writer is not None:
            try:
                with self._watched(self._driver), self._writer.begin():
                    release_advisory(self._writer, search_id)
            except sa.exc.DBAPIError:  # lost, together with its locks
                self._drop()

    def _drop(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            _close(connection, self._driver)

    # --- shutdown ------------------------------------------------------------------------------------------

    @contextmanager
    def _watched(self, driver: Any) -> Iterator[None]:
        self._waiting[driver] = time.monotonic()
        try:
            yield
        finally:
            self._waiting.pop(driver, None)

    def _watch(self, done: threading.Event) -> None:
        """Cut off a server that does not answer during shutdown; no client setting bounds that wait."""
        while not done.wait(WATCH_S):
            if self._hurried is None:
                continue
            for driver, since in list(self._waiting.items()):
                if time.monotonic() - max(since, self._hurried) > LAST_S:
                    _cut_off(driver)

    def release_after_fork(self) -> None:
        """Disconnect in the child of a fork, whose copy of the connection would keep the locks of an ended parent."""
        if self._writer is not None and not self._driver.closed:
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, self._driver.fileno(), inheritable=False)
            os.close(nothing)


def transactions(
    engine: Engine, url: sa.URL, where: str, read_only: bool, notice: Callable[[str], None]
) -> Transactions:
    """Return the transactions for the ledger's URL."""
    if sqlite_path(url) is not None:
        return Transactions(engine, url, where, read_only)
    return ServerTransactions(engine, url, where, read_only, notice)


def _close(connection: Connection, driver: Any) -> None:
    """Close a detached connection; SQLAlchemy does not close one that it finds lost."""
    connection.invalidate()  # without a message to the server: an open transaction ends with the connection
    connection.close()
    driver.close()


def _cut_off(driver: Any) -> None:
    """Shut down a connection's socket; the waiting thread gets a connection error."""
    with suppress(Exception):  # closed meanwhile, by either side
        end = socket.socket(fileno=os.dup(driver.fileno()))
        with end:
            end.shutdown(socket.SHUT_RDWR)


def _twice(exc: sa.exc.IntegrityError) -> RecordedTwiceError:
    return RecordedTwiceError(f"already recorded, or an item set is missing: {exc.orig}")


_servers: "weakref.WeakSet[ServerTransactions]" = weakref.WeakSet()


def _after_fork() -> None:
    for server in _servers:
        server.release_after_fork()


os.register_at_fork(after_in_child=_after_fork)
