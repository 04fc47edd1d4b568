"""A thread that copies the ledger's events to a store, and never lets the store's troubles reach the search.

The mirror reads the ledger by itself, so the search only says that there is something new. When the store fails, the
mirror drops all it believed about it, waits, opens it anew and goes on after the last event that the store itself
says it holds. A sink's `write` may therefore see events again, and must come to the same result.
"""

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from evosearch.search.events import Event

CHUNK = 64  # events written between two marks of how far the mirror is
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between attempts while the store fails
POLL_S = 30.0  # how long to sleep without being told of anything new
UP_TO_DATE = "up to date"


class EventReader(Protocol):
    """The part of a ledger that a mirror needs."""

    def events(self, search_id: str, after: int = 0) -> list[Event]: ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Where events are copied to. Any method may raise; the next call is then `open`."""

    def open(self) -> int:
        """Connect, reconcile with what is there, and tell the `seq` of the last event it holds (0: none)."""

    def recall(self, events: Sequence[Event]) -> None:
        """Events it holds already, from the first: what it needs to know to write the next ones."""

    def write(self, events: Sequence[Event]) -> None:
        """Copy events, in order, then mark how far it is. Writing an event twice equals writing it once."""


class Mirror:
    """A `Tracker`: copies one search's events to a sink from a thread of its own.

    Args:
        open_reader: opens the ledger for the mirror alone, in its thread; the mirror closes it.
    """

    def __init__(self, sink: Sink, open_reader: Callable[[], EventReader], search_id: str) -> None:
        self._sink, self._open_reader, self._search_id = sink, open_reader, search_id
        self._reader: EventReader | None = None
        self._cursor = 0
        self._opened = False
        self._behind, self._reason = 0, ""
        self._wake, self._closing = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._told, self._done = 0, 0  # how often something was new, and up to which of these all is mirrored
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def state(self) -> str:
        """`up to date`, or `behind: 12 events, connection refused`."""
        if self._done == self._told and not self._reason:
            return UP_TO_DATE
        return f"behind: {self._behind} event{'' if self._behind == 1 else 's'}, {self._reason or 'catching up'}"

    def notify(self) -> None:
        with self._changed:
            self._told += 1
        self._wake.set()
        if not self._closing.is_set():
            self._ensure_running()

    def catch_up(self, timeout_s: float) -> bool:
        """Wait until everything now in the ledger is mirrored; False where that takes longer. The mirror goes on."""
        self.notify()
        told = self._told
        with self._changed:
            return self._changed.wait_for(lambda: self._done >= told, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Catch up as far as the time allows, then stop. What is left is written by the next mirror.

        Closing again catches up with what was recorded since.
        """
        self._deadline = time.monotonic() + timeout_s
        self.notify()  # before the flag: a thread that sees the flag sees that there may be something new, too
        self._closing.set()
        self._wake.set()
        while self._done < self._told and time.monotonic() < self._deadline:
            self._ensure_running().join(max(0.0, self._deadline - time.monotonic()))

    def _ensure_running(self) -> threading.Thread:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
                self._thread.start()
            return self._thread

    def _run(self) -> None:
        try:
            self._mirror()
        finally:
            self._close_reader()

    def _mirror(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            try:
                self._wake.clear()
                told = self._told
                if self._write_all():
                    self._mark(told)
                pause = FIRST_PAUSE_S
                if self._closing.is_set() and (self._done == self._told or time.monotonic() > self._deadline):
                    return
                self._wake.wait(POLL_S)
            except Exception as exc:  # whatever a store, a driver or a network can raise: the search goes on
                self._opened = False
                self._reason = describe(exc)
                self._count_behind()
                if not self._pause(pause):
                    return
                pause = min(2.0 * pause, LONGEST_PAUSE_S)

    def _mark(self, told: int) -> None:
        with self._changed:
            self._done = told
            self._changed.notify_all()

    def _write_all(self) -> bool:
        """Write everything the ledger holds; False where there was no time for all of it."""
        if self._reader is None:
            self._reader = self._open_reader()
        if not self._opened:
            self._cursor = self._sink.open()
            self._sink.recall([e for e in self._reader.events(self._search_id) if e.seq <= self._cursor])
            self._opened = True
        events = self._reader.events(self._search_id, after=self._cursor)
        while events:
            self._behind, self._reason = len(events), "catching up"
            if time.monotonic() > self._deadline:
                return False
            chunk, events = events[:CHUNK], events[CHUNK:]
            self._sink.write(chunk)
            self._cursor = chunk[-1].seq
            events = events or self._reader.events(self._search_id, after=self._cursor)
        self._behind, self._reason = 0, ""
        return True

    def _count_behind(self) -> None:
        try:
            self._reader = self._reader or self._open_reader()
            self._behind = len(self._reader.events(self._search_id, after=self._cursor))
        except Exception:  # the ledger itself fails: keep the last number, and open it again next time
            self._close_reader()

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _pause(self, pause_s: float) -> bool:
        """Wait before the next attempt; False when there is no time left for one."""
        if not self._closing.is_set():
            self._closing.wait(pause_s)
            return True
        left_s = self._deadline - time.monotonic()
        time.sleep(max(0.0, min(pause_s, left_s)))
        return left_s > pause_s


def describe(exc: BaseException) -> str:
    """One line on an error, without the credentials a URL may hold.

    Where the system said no (connection refused, disk full), its own words are taken: the libraries between wrap them
    in hundreds of characters.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    root = next((link for link in reversed(chain) if isinstance(link, OSError)), exc)
    lines = str(root).strip().splitlines()
    text = f"{type(root).__name__}: {lines[0]}" if lines else type(root).__name__
    return hide_credentials(text[:300])


def hide_credentials(text: str) -> str:
    """`postgresql://user:secret@host` as `postgresql://***@host`."""
    return re.sub(r"://[^@/\s]+@", "://***@", text)
