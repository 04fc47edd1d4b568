"""A thread that copies the ledger's events to a store, and never lets the store's troubles reach the search.

The mirror reads the ledger by itself, so the search only says that there is something new. When the store fails, the
mirror drops all it believed about it, waits, opens it anew and goes on after the last event that the store itself
says it holds. A sink's `write` may therefore see events again, and must come to the same result.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from evosearch.credentials import hidden_in
from evosearch.search.ledger.events import Event

CHUNK = 64  # events written between two marks of how far the mirror is
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between attempts while the store fails
HURRIED_PAUSE_S = 1.0  # the same while somebody waits
POLL_S = 30.0  # how long to sleep without being told of anything new
UP_TO_DATE = "up to date"


class EventReader(Protocol):
    """The part of a ledger that a mirror needs."""

    def events(self, search_id: str, after: int = 0, *, limit: int | None = None) -> list[Event]: ...

    def count_events(self, search_id: str, after: int = 0) -> int: ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Where events are copied to. Any method may raise; the next call is then `open`."""

    def open(self) -> int:
        """Connect, reconcile with what is there, and tell the `seq` of the last event it holds (0: none)."""

    def recall(self, events: Sequence[Event]) -> None:
        """Events it holds already, some at a time, from the first: what it needs to know to write the next ones."""

    def write(self, events: Sequence[Event]) -> None:
        """Copy events, in order, then mark how far it is. Writing an event twice equals writing it once."""


class Mirror:
    """A `Tracker`: copies one search's events to a sink from a thread of its own.

    Args:
        open_reader: opens the ledger for the mirror alone, in its thread; the mirror closes it.
        notice: told once when the store begins to fail, and once when all is mirrored again; called in the thread.
    """

    def __init__(
        self,
        sink: Sink,
        open_reader: Callable[[], EventReader],
        search_id: str,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._sink, self._open_reader, self._search_id, self._notice = sink, open_reader, search_id, notice
        self._reader: EventReader | None = None
        self._cursor = 0
        self._opened = False
        self._behind, self._reason = 0, ""
        self._wake, self._closing = threading.Event(), threading.Event()
        self._hurry = threading.Event()  # somebody waits: no long pauses
        self._deadline = float("inf")
        self._failing, self._noticed = False, False  # since the last write that went well; whether it was told
        self._failures = 0
        self._patience_ends = float("inf")  # when those who wait give a failing store up; starts with the first wait
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

    def catch_up(self, timeout_s: float, patience_s: float = math.inf) -> bool:
        """Wait until everything now in the ledger is mirrored; False where that takes longer. The mirror goes on.

        Args:
            patience_s: how long to wait at most while the store fails; of all waits together, until it is well again.
        """
        self.notify()
        told, deadline = self._told, time.monotonic() + timeout_s
        failures = self._start_hurrying(patience_s)
        with self._changed:
            while self._done < told:
                left_s = self._given_up_at(deadline, failures) - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(min(left_s, 0.2))  # short: the end moves when the store fails or is well again
            return self._done >= told

    def close(self, timeout_s: float, patience_s: float = math.inf) -> None:
        """Catch up as far as the time allows, then stop. What is left is written by the next mirror.

        Closing again catches up with what was recorded since. For `patience_s` see `catch_up`.
        """
        self._deadline = time.monotonic() + timeout_s
        self.notify()  # before the flag: a thread that sees the flag sees that there may be something new, too
        self._closing.set()
        self._wake.set()
        failures = self._start_hurrying(patience_s)
        while self._done < self._told:
            left_s = self._given_up_at(self._deadline, failures) - time.monotonic()
            if left_s <= 0:
                break
            self._ensure_running().join(min(left_s, 0.2))

    def _start_hurrying(self, patience_s: float) -> int:
        ends = time.monotonic() + patience_s
        self._patience_ends = ends if math.isinf(ends) else min(self._patience_ends, ends)
        self._hurry.set()
        return self._failures

    def _given_up_at(self, deadline: float, failures: int) -> float:
        """When waiting ends: at the deadline, or earlier where the store fails and has failed since the wait began."""
        return min(deadline, self._patience_ends) if self._failing and self._failures > failures else deadline

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
                    self._recovered()
                pause = FIRST_PAUSE_S
                if self._closing.is_set() and (self._done == self._told or time.monotonic() > self._deadline):
                    return
                self._wake.wait(POLL_S)
            except Exception as exc:  # whatever a store, a driver or a network can raise: the search goes on
                self._opened = False
                self._count_behind()  # before the reason: whoever reads of it reads how much is missing
                self._reason = describe(exc)
                self._failed()
                if not self._pause(pause):
                    return
                pause = min(2.0 * pause, LONGEST_PAUSE_S)

    def _failed(self) -> None:
        self._failing, self._failures = True, self._failures + 1
        if not self._noticed:
            self._noticed = True
            self._notice(f"{self._reason}. The search goes on; what is missing there is written once it is back")

    def _recovered(self) -> None:
        if self._noticed:
            self._noticed = False
            self._notice("is back, and up to date again")

    def _well(self) -> None:
        self._failing, self._patience_ends = False, math.inf

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
            self._recall(self._reader)
            self._opened = True
        # A chunk at a time: a store that was away for a night is behind by more than memory should hold
        while chunk := self._reader.events(self._search_id, after=self._cursor, limit=CHUNK):
            behind = self._reader.count_events(self._search_id, after=self._cursor)
            self._behind, self._reason = behind, "catching up"
            if time.monotonic() > self._deadline:
                return False
            self._sink.write(chunk)
            self._cursor = chunk[-1].seq
            self._well()
        self._behind, self._reason = 0, ""
        self._well()
        return True

    def _recall(self, reader: EventReader) -> None:
        """Tell the sink what it holds."""
        seq = 0
        while seq < self._cursor and (chunk := reader.events(self._search_id, after=seq, limit=CHUNK)):
            self._sink.recall([event for event in chunk if event.seq <= self._cursor])
            seq = chunk[-1].seq

    def _count_behind(self) -> None:
        try:
            self._reader = self._reader or self._open_reader()
            self._behind = self._reader.count_events(self._search_id, after=self._cursor)
        except Exception:  # the ledger itself fails: keep the last number, and open it again next time
            self._close_reader()

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _pause(self, pause_s: float) -> bool:
        """Wait before the next attempt; False when there is no time left for one.

        Where somebody waits the pause is cut short, and stays short.
        """
        if not self._closing.is_set() and not self._hurry.wait(pause_s):
            return True
        deadline = min(self._deadline, self._patience_ends) if self._closing.is_set() else math.inf
        pause_s = min(pause_s, HURRIED_PAUSE_S)
        left_s = deadline - time.monotonic()
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
    return hidden_in(text)[:300]  # in this order: half a URL does not show where its password ends
