"""How a ledger's database is read and written: on a file at once or not at all, on a server with patience.

A server restarts, a network breaks: what fails for such a reason is done again, as a whole, on a new connection, for
some minutes. Who writes must therefore be able to tell whether an attempt whose answer was lost took effect.

On a server the locks of the searches belong to the one connection that writes: while it lives they are held, and where
it is lost they are taken again before anything else is written.
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

from evosearch.errors import LedgerError
from evosearch.search.ledger.errors import passes, reason_of, shown, unusable
from evosearch.search.ledger.lock import (
    Holder,
    advisory_holder,
    file_lock,
    file_lock_holder,
    release_advisory,
    taken,
    this_process,
    try_advisory,
    who_is,
)
from evosearch.search.ledger.store import sqlite_path

Result = TypeVar("Result")
PATIENCE_S = 300.0  # how long a writer waits for its server; a restart takes seconds, a failover a minute or two
READERS_PATIENCE_S = 20.0  # a reader may as well be started again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0  # between attempts
JUST_ENDED_S = 1.0  # a server takes a moment to see that a killed process is gone
CUT_OFF_S = 30.0  # and longer to end one of its own that we told it to end
LAST_S = 4.0  # how long a writer that is told to end waits for its server, and for each of its answers
WATCH_S = 0.5  # how often it is seen whether an answer is overdue


class RecordedTwiceError(AssertionError):
    """Something that is recorded once was about to be recorded again: a mistake of ours, never of the user's."""


class Transactions:
    """A ledger in a file: what fails, fails."""

    def __init__(self, engine: Engine, url: sa.URL, where: str, read_only: bool) -> None:
        self._engine, self._url, self._where, self._read_only = engine, url, where, read_only

    def close(self) -> None:
        self._engine.dispose()

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Do `work`, which reads, on one state of the database."""
        try:
            with self._engine.connect() as connection:
                return work(connection)
        except sa.exc.DBAPIError as exc:
            raise unusable(self._url, self._where, exc) from exc

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Do `work`, which writes, as a whole or not at all. On a server it may be called several times.

        Raises:
            RecordedTwiceError: it breaks a uniqueness, or refers to what is not there.
            LedgerError: the database cannot be written.
        """
        assert not self._read_only, "a ledger opened to be read is written to"
        try:
            with self._engine.connect().execution_options(evosearch_write=True) as connection, connection.begin():
                return work(connection)
        except sa.exc.IntegrityError as exc:
            raise _twice(exc) from exc
        except sa.exc.DBAPIError as exc:
            raise unusable(self._url, self._where, exc) from exc

    def hurry(self) -> None:
        """From here on wait only seconds for a server: this process is about to end. Signal handlers may call it."""

    def holding(self, search_id: str) -> AbstractContextManager[None]:
        """Be the one writer of a search, as long as the context lasts.

        Raises:
            LedgerError: another process is, or this one already.
        """
        return file_lock(self._file, search_id, self._where)

    def holder(self, search_id: str) -> str | None:
        """Who writes to a search now, as far as can be told."""
        return file_lock_holder(self._file, search_id)

    @property
    def _file(self) -> Path:
        path = sqlite_path(self._url)
        assert path is not None
        return path


class ServerTransactions(Transactions):
    """A ledger on a PostgreSQL server, which may be away for a while."""

    def __init__(self, engine: Engine, url: sa.URL, where: str, read_only: bool, notice: Callable[[str], None]) -> None:
        super().__init__(engine, url, where, read_only)
        self._patience_s = READERS_PATIENCE_S if read_only else PATIENCE_S
        self._notice = notice
        self._given_up = False  # a server that was waited for in vain is not waited for again until it answers
        self._mutex = threading.RLock()
        self._writer: Connection | None = None
        self._driver: Any = None  # the driver's own connection under it
        self._ours: set[tuple[int, Any]] = set()  # who our writer was, and is, at the server; see `who_is`
        self._held: set[str] = set()  # searches
        self._asked: dict[Any, float] = {}  # drivers' connections whose answer is waited for, and since when
        self._hurried: float | None = None  # when it was told to hurry
        sa.event.listen(engine, "do_connect", self._before_connecting)
        _servers.add(self)

    def _before_connecting(self, dialect: Any, record: Any, arguments: Any, settings: dict[str, Any]) -> None:
        if self._hurried is not None:
            settings["connect_timeout"] = int(LAST_S)

    def close(self) -> None:
        with self._mutex:
            self._drop()
        super().close()

    def read(self, work: Callable[[Connection], Result]) -> Result:
        return self._patiently(partial(self._read, work))

    def write(self, work: Callable[[Connection], Result]) -> Result:
        assert not self._read_only, "a ledger opened to be read is written to"
        with self._mutex:
            return self._patiently(partial(self._write, work))

    def hurry(self) -> None:
        self._patience_s = min(self._patience_s, LAST_S)
        self._hurried = time.monotonic()

    @contextmanager
    def holding(self, search_id: str) -> Iterator[None]:
        with self._mutex:
            if search_id in self._held:
                raise taken(self._where, this_process())
            self.write(lambda connection: self._take(connection, search_id))
            self._held.add(search_id)
        done = threading.Event()
        try:
            # From the start: a signal's handler cannot start a thread
            threading.Thread(target=self._watch, args=(done,), name="ledger", daemon=True).start()
            yield
        finally:
            done.set()
            with self._mutex:
                self._held.discard(search_id)
                self._release(search_id)

    def holder(self, search_id: str) -> str | None:
        found = self.read(lambda connection: advisory_holder(connection, search_id))
        return found.about if found else None

    # --- attempts -----------------------------------------------------------------------------------------------

    def _patiently(self, attempt: Callable[[], Result]) -> Result:
        """The result of an attempt that goes well, in the end."""
        began, pause = time.monotonic(), FIRST_PAUSE_S
        failed = False
        while True:
            try:
                result = attempt()
            except sa.exc.IntegrityError as exc:
                raise _twice(exc) from exc
            except sa.exc.DBAPIError as exc:
                if not passes(exc):
                    raise unusable(self._url, self._where, exc) from exc
                waited = time.monotonic() - began
                if self._given_up or waited > self._patience_s:
                    self._given_up = True
                    raise self._away(exc, waited) from exc
                if not failed:
                    self._notice(f"{shown(self._url)}: {reason_of(exc)}. Trying again for {self._patience_s:.0f} s")
                failed = True
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 not to come back all at once
                pause = min(2.0 * pause, LONGEST_PAUSE_S)
            else:
                self._given_up = False
                if failed:
                    self._notice(f"{shown(self._url)}: is back after {time.monotonic() - began:.0f} s; nothing is lost")
                return result

    def _away(self, exc: sa.exc.DBAPIError, waited_s: float) -> LedgerError:
        what = f"{shown(self._url)} cannot be reached"
        what += f", for {waited_s:.0f} s: {reason_of(exc)}" if waited_s > 1.0 else f": {reason_of(exc)}"
        next = "What was recorded is safe: once the server is back, the same command continues"
        return LedgerError(self._where, what, next=next)

    def _read(self, work: Callable[[Connection], Result]) -> Result:
        snapshot = self._engine.execution_options(isolation_level="REPEATABLE READ")  # all of `work` sees one state
        with snapshot.connect() as connection, self._watched(connection.connection.dbapi_connection):
            return work(connection)

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        connection = self._connected()
        try:
            with self._watched(self._driver), connection.begin():
                return work(connection)
        except (sa.exc.IntegrityError, LedgerError):  # it is undone, and the connection with its locks is as it was
            raise
        except BaseException:  # also an interrupted one: its connection would come back without the locks
            self._drop()
            raise

    # --- the connection that writes, and its locks --------------------------------------------------------------

    def _connected(self) -> Connection:
        if self._writer is None:
            connection = self._engine.connect()
            driver: Any = connection.connection.dbapi_connection
            try:
                connection.detach()  # nobody else gets it
                with self._watched(driver), connection.begin():
                    self._ours.add(who_is(connection))
                    for search_id in self._held:
                        self._take(connection, search_id)
            except BaseException:
                _close(connection, driver)
                raise
            self._writer, self._driver = connection, driver
        return self._writer

    def _take(self, connection: Connection, search_id: str) -> None:
        """Take a search's lock; from our own lost connection, where the server has not seen that it is lost.

        Raises:
            LedgerError: another process has it.
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
        """Whether it is a connection that we lost; servers give the number of a process again, another time."""
        return (found.backend, found.since) in self._ours

    def _release(self, search_id: str) -> None:
        if self._writer is not None:
            try:
                with self._watched(self._driver), self._writer.begin():
                    release_advisory(self._writer, search_id)
            except sa.exc.DBAPIError:  # lost, and its locks with it
                self._drop()

    def _drop(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            _close(connection, self._driver)

    # --- an end in a hurry ----------------------------------------------------------------------------------------

    @contextmanager
    def _watched(self, driver: Any) -> Iterator[None]:
        self._asked[driver] = time.monotonic()
        try:
            yield
        finally:
            self._asked.pop(driver, None)

    def _watch(self, done: threading.Event) -> None:
        """Cut off a server that does not answer whoever is in a hurry: no setting of its client bounds that wait."""
        while not done.wait(WATCH_S):
            if self._hurried is None:
                continue
            for driver, since in list(self._asked.items()):
                if time.monotonic() - max(since, self._hurried) > LAST_S:
                    _cut_off(driver)

    def let_go_after_fork(self) -> None:
        """In the child of a fork: its copy of the connection must not keep the locks of a parent that ends."""
        if self._writer is not None and not self._driver.closed:
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, self._driver.fileno(), inheritable=False)
            os.close(nothing)


def transactions(
    engine: Engine, url: sa.URL, where: str, read_only: bool, notice: Callable[[str], None]
) -> Transactions:
    """What fits the ledger's URL."""
    if sqlite_path(url) is not None:
        return Transactions(engine, url, where, read_only)
    return ServerTransactions(engine, url, where, read_only, notice)


def _close(connection: Connection, driver: Any) -> None:
    """End a detached connection, lost or not. SQLAlchemy does not close what it finds lost."""
    connection.invalidate()  # nothing more is said to the server: what was begun ends with the connection
    connection.close()
    driver.close()


def _cut_off(driver: Any) -> None:
    """End what is waited for on a connection; who waits is told that it is lost."""
    with suppress(Exception):  # closed meanwhile, by us or from over there
        end = socket.socket(fileno=os.dup(driver.fileno()))
        with end:
            end.shutdown(socket.SHUT_RDWR)


def _twice(exc: sa.exc.IntegrityError) -> RecordedTwiceError:
    return RecordedTwiceError(f"the ledger holds this already, or lacks the item set it refers to: {exc.orig}")


_servers: "weakref.WeakSet[ServerTransactions]" = weakref.WeakSet()


def _after_fork() -> None:
    for server in _servers:
        server.let_go_after_fork()


os.register_at_fork(after_in_child=_after_fork)
