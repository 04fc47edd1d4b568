"""Shutdown: record why a search ended, whether it finished, failed or was interrupted.

An interrupt (SIGINT, SIGTERM, or SIGHUP of a closed terminal) raises KeyboardInterrupt between any two steps. Once one
has reached the code that records the end, later ones are ignored until that is done, which takes seconds: at most
`LAST_S` of waiting for a ledger that another program has locked or a server that does not answer.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from evosearch.errors import EvosearchError, LedgerUnavailableError
from evosearch.search.ledger.file_transactions import postpone_interrupt
from evosearch.search.recorder import Recorder

Found = TypeVar("Found")
Exc = TypeVar("Exc", bound=BaseException)
UNRECORDED = "cannot record that the search stopped"
ON_RESUME = (
    "Nothing else is lost, and the same command resumes the search; evosearch status shows it without this reason, and "
    "the time since its last recorded event does not count towards budget.hours."
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_S = 2.0  # minimum interval between interrupts; Python drops those raised in a finalizer, so one may be repeated


class Interrupt:
    """Signal handler while a search runs."""

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        self._not_before = 0.0

    def arrived(self) -> None:
        """Ignore all further signals."""
        self._not_before = math.inf
        self._hurry()

    def __call__(self, signum: int, frame: Any) -> None:
        """Interrupt the search, at the end of a transaction if there is one, unless the last interrupt was just now."""
        if (now := time.monotonic()) >= self._not_before:
            self._not_before = now + AGAIN_S
            self._hurry()
            if not postpone_interrupt():
                raise KeyboardInterrupt


def recorded_end(recorder: Recorder, search: Callable[[], tuple[str, Found]]) -> Found:
    """Run `search` and record why it ended, provided that it had recorded its start.

    If an interrupt or a failure cannot be recorded, because the ledger stays locked or its server is down (for
    `file_transactions.LAST_S` or `transactions.LAST_S`), the original exception is raised with a note that says so and
    what follows from it. The watcher shows that note too.

    Args:
        recorder: The search's recorder.
        search: Records `started`; returns why it stopped, and its result.

    Raises:
        KeyboardInterrupt: The search was interrupted, possibly by a SystemExit of another signal handler.
        LedgerError: The search ended normally, and that cannot be recorded.
    """
    before = recorder.state.last_seq
    with _interrupts(recorder.ledger.hurry) as interrupt:
        try:
            try:
                return _run_to_end(recorder, before, search)
            except (KeyboardInterrupt, SystemExit):
                interrupt.arrived()
        except KeyboardInterrupt:  # a second one, before that line; `Interrupt` ignores an immediate third
            interrupt.arrived()
        unrecorded = _record(recorder, before, "interrupted")
        raise _noted(KeyboardInterrupt(), unrecorded)


def _run_to_end(recorder: Recorder, before: int, search: Callable[[], tuple[str, Found]]) -> Found:
    try:
        reason, found = search()
        recorder.record([("stopped", {"reason": reason})])
    except Exception as exc:
        if isinstance(exc, LedgerUnavailableError):
            recorder.ledger.hurry()  # it has been waited for already
        text = str(exc) if isinstance(exc, EvosearchError) else f"{type(exc).__name__}: {exc}"
        _noted(exc, _record(recorder, before, f"failed: {text}"))
        raise
    return found


def _record(recorder: Recorder, before: int, reason: str) -> str | None:
    """Record the end of a search; return what follows if that is not possible."""
    try:
        if _is_open(recorder, before):
            recorder.record([("stopped", {"reason": reason})])
    except EvosearchError as exc:
        text = f"{UNRECORDED} ({reason}): {exc} {ON_RESUME}"
        recorder.watcher.note(text)
        return text
    return None


def _noted(exc: Exc, text: str | None) -> Exc:
    if text is not None:
        exc.add_note(text)
    return exc


def _is_open(recorder: Recorder, before: int) -> bool:
    """Whether the ledger has the start of this run, and not its end.

    The ledger is read again because an interrupt may have come right after a commit.
    """
    found = recorder.ledger.events(recorder.search_id, after=before, types=("started", "stopped"))
    return bool(found) and found[-1].type == "started"


@contextmanager
def _interrupts(hurry: Callable[[], None]) -> Iterator[Interrupt]:
    interrupt = Interrupt(hurry)
    if threading.current_thread() is not threading.main_thread():  # signals are handled there
        yield interrupt
        return
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    # Ignored signals stay ignored: a shell's background jobs ignore SIGINT, and programs under nohup SIGHUP
    taken = [number for number, handler in kept.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in taken:
            signal.signal(number, interrupt)
        yield interrupt
    finally:
        for number in taken:
            signal.signal(number, kept[number])
