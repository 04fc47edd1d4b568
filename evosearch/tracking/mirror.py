"""Mirror: a thread that copies the ledger's events to a store, isolating the search from failures of the store.

The mirror reads the ledger itself; the search only notifies it of new events. When the store fails, the mirror waits,
opens the store again, and continues after the last event that the store itself reports. A sink's `write` may therefore
receive events twice, and must be idempotent.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from evosearch.redaction import hidden_in
from evosearch.search.ledger.events import Event

CHUNK = 128  # events written between two updates of the cursor
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between attempts while the store fails
HURRIED_PAUSE_S = 1.0  # longest pause while a caller waits
GATHER_S = 2.0  # from a notification to the write, in which the events of a fast search gather; not if a caller waits
POLL_S = 30.0  # longest sleep without a notification
UP_TO_DATE = "up to date"


class EventReader(Protocol):
    """The read access to a ledger that a mirror needs."""

    def events(self, search_id: str, after: int = 0, *, limit: int | None = None) -> list[Event]:
        """Return the events after a `seq`, at most `limit` of them."""

    def count_events(self, search_id: str, after: int = 0) -> int:
        """Count the events after a `seq`."""

    def close(self) -> None:
        """Close the connection."""


class Sink(Protocol):
    """Destination of a mirror. Any method may raise; the next call is then `open`."""

    def open(self) -> int:
        """Connect, reconcile with the existing content, and return the `seq` of the last event in it (0: none)."""

    def recall(self, events: Sequence[Event]) -> None:
        """Restore state from events already in the sink; called after `open`, in chunks from the first event on."""

    def write(self, events: Sequence[Event]) -> None:
        """Copy events in order, then update the cursor. Must be idempotent."""

    def advance(self, candidate: str, events: Iterable[Event]) -> None:
        """Copy one candidate ahead of its turn, without moving the cursor.

        Args:
            candidate: The candidate.
            events: All events of the search.
        """


class Mirror:
    """A `Tracker` that copies one search's events to a sink, in its own thread.

    Args:
        sink: Destination of the events.
        open_reader: Opens the ledger for the mirror, in its thread; the mirror closes it.
        search_id: The search to mirror.
        notice: Called in the thread, once when the store starts to fail and once when the mirror is up to date again.
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
        self._hurry = threading.Event()  # a caller waits, so pauses are short
        self._deadline = float("inf")
        self._failing, self._noticed = False, False  # since the last successful write; whether `notice` was called
        self._failures = 0
        self._patience_ends = float("inf")  # when waiting callers give up on a failing store; set by the first wait
        self._notified, self._done = 0, 0  # notifications, and those up to which everything is mirrored
        self._ahead: list[str] = []  # candidates to be mirrored ahead of their turn
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def state(self) -> str:
        """State of the mirror: `up to date`, or `behind: 12 events, connection refused`."""
        if self._done == self._notified and not self._reason:
            return UP_TO_DATE
        return f"behind: {self._behind} event{'' if self._behind == 1 else 's'}, {self._reason or 'catching up'}"

    @property
    def leaderboard(self) -> str:
        """Address of the leaderboard below that of its server; empty if it has none, or is not open yet."""
        return ""

    def notify(self) -> None:
        """Announce new events in the ledger; returns at once."""
        with self._changed:
            self._notified += 1
        self._wake.set()
        if not self._closing.is_set():
            self._ensure_running()

    def bring_forward(self, candidate: str, timeout_s: float, patience_s: float = math.inf) -> bool:
        """Wait until one candidate is mirrored, ahead of what else is missing.

        Args:
            candidate: The candidate, of which everything now in the ledger is mirrored.
            timeout_s: Longest wait.
            patience_s: Longest wait while the store fails, for all waits together until the store works again.

        Returns:
            Whether it was mirrored in time; if not, it still comes next.
        """
        self._ahead.append(candidate)
        self.notify()
        deadline = time.monotonic() + timeout_s
        failures = self._start_hurrying(patience_s)
        with self._changed:
            while candidate in self._ahead:
                left_s = self._given_up_at(deadline, failures) - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, 0.2))
        return True

    def close(self, timeout_s: float, patience_s: float = math.inf) -> None:
        """Catch up as far as time allows, then stop; a later mirror of the search writes the rest.

        A second `close` catches up with events recorded since the first.

        Args:
            timeout_s: Longest wait.
            patience_s: As for `bring_forward`.
        """
        self._deadline = time.monotonic() + timeout_s
        self.notify()  # before the flag: a thread that sees the flag also sees the notification
        self._closing.set()
        self._wake.set()
        failures = self._start_hurrying(patience_s)
        while self._done < self._notified:
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
        """Return when the wait ends: at the deadline, or earlier if the store has failed since the wait began."""
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
                notified = self._notified
                if self._write_all():
                    self._mark(notified)
                    self._recovered()
                pause = FIRST_PAUSE_S
                if self._closing.is_set() and (self._done == self._notified or time.monotonic() > self._deadline):
                    return
                self._wake.wait(POLL_S)
                self._hurry.wait(GATHER_S)
            except Exception as exc:  # any error of a store, a driver or a network: the search continues
                self._opened = False
                self._count_behind()  # before `_reason`, so that `state` never shows a reason without its count
                self._reason = describe(exc)
                self._failed()
                if not self._pause(pause):
                    return
                pause = min(2.0 * pause, LONGEST_PAUSE_S)

    def _failed(self) -> None:
        self._failing, self._failures = True, self._failures + 1
        if not self._noticed:
            self._noticed = True
            self._notice(f"{self._reason}. The search continues; missing events are written once the store is back")

    def _recovered(self) -> None:
        if self._noticed:
            self._noticed = False
            self._notice("is available again and up to date")

    def _reset_patience(self) -> None:
        self._failing, self._patience_ends = False, math.inf

    def _mark(self, notified: int) -> None:
        with self._changed:
            self._done = notified
            self._changed.notify_all()

    def _write_all(self) -> bool:
        """Write everything in the ledger; return False if there was not enough time."""
        if self._reader is None:
            self._reader = self._open_reader()
        if not self._opened:
            self._cursor = self._sink.open()
            self._recall(self._reader)
            self._opened = True
        # In chunks: after a long outage, the missing events may not fit in memory.
        while True:
            ahead = tuple(self._ahead)
            chunk = self._reader.events(self._search_id, after=self._cursor, limit=CHUNK)
            if not chunk:
                break
            behind = self._reader.count_events(self._search_id, after=self._cursor)
            self._behind, self._reason = behind, "catching up"
            if time.monotonic() > self._deadline:
                return False
            for candidate in ahead:
                self._sink.advance(candidate, _all_events(self._reader, self._search_id))
            self._mark_ahead(ahead)
            self._sink.write(chunk)
            self._cursor = chunk[-1].seq
            self._reset_patience()
        self._mark_ahead(ahead)
        self._behind, self._reason = 0, ""
        self._reset_patience()
        return True

    def _mark_ahead(self, candidates: Sequence[str]) -> None:
        with self._changed:
            for candidate in candidates:
                self._ahead.remove(candidate)
            self._changed.notify_all()

    def _recall(self, reader: EventReader) -> None:
        """Pass the events that the sink already contains to `Sink.recall`."""
        seq = 0
        while seq < self._cursor and (chunk := reader.events(self._search_id, after=seq, limit=CHUNK)):
            self._sink.recall([event for event in chunk if event.seq <= self._cursor])
            seq = chunk[-1].seq

    def _count_behind(self) -> None:
        try:
            self._reader = self._reader or self._open_reader()
            self._behind = self._reader.count_events(self._search_id, after=self._cursor)
        except Exception:  # the ledger itself fails: keep the last count, and reopen the ledger next time
            self._close_reader()

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _pause(self, pause_s: float) -> bool:
        """Wait before the next attempt; return False if no time is left for one.

        While a caller waits, the pause is cut short and stays short.
        """
        if not self._closing.is_set() and not self._hurry.wait(pause_s):
            return True
        deadline = min(self._deadline, self._patience_ends) if self._closing.is_set() else math.inf
        pause_s = min(pause_s, HURRIED_PAUSE_S)
        left_s = deadline - time.monotonic()
        time.sleep(max(0.0, min(pause_s, left_s)))
        return left_s > pause_s


def _all_events(reader: EventReader, search_id: str) -> Iterator[Event]:
    seq = 0
    while chunk := reader.events(search_id, after=seq, limit=CHUNK):
        yield from chunk
        seq = chunk[-1].seq


def describe(exc: BaseException) -> str:
    """Describe an error in one line, without the credentials that a URL may contain.

    For operating system errors (connection refused, disk full), the system's own message is used, because libraries
    wrap it in hundreds of characters.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    root = next((link for link in reversed(chain) if isinstance(link, OSError)), exc)
    lines = str(root).strip().splitlines()
    text = f"{type(root).__name__}: {lines[0]}" if lines else type(root).__name__
    return hidden_in(text)[:300]  # before truncating: a truncated URL hides where its password ends
