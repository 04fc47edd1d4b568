"""Shutdown: record why a search ended, whether it finished, failed or was interrupted.

An interrupt (SIGINT, SIGTERM, or SIGHUP of a closed terminal) raises KeyboardInterrupt between any two steps. Once one
has reached the code that records the end, later ones are ignored until that is done, which takes seconds.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from evosearch.errors import EvosearchError
from evosearch.search.recorder import Recorder

Found = TypeVar("Found")
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
        """Interrupt the search, unless the last interrupt was just now."""
        if (now := time.monotonic()) >= self._not_before:
            self._not_before = now + AGAIN_S
            self._hurry()
            raise KeyboardInterrupt


def recorded_end(recorder: Recorder, search: Callable[[], tuple[str, Found]]) -> Found:
    """Run `search` and record why it ended, provided that it had recorded its start.

    If an interrupt or a failure cannot be recorded because the server is down, that is noted and the original exception
    is raised.

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
        _record(recorder, before, "interrupted")
        raise KeyboardInterrupt


def _run_to_end(recorder: Recorder, before: int, search: Callable[[], tuple[str, Found]]) -> Found:
    try:
        reason, found = search()
        recorder.record([("stopped", {"reason": reason})])
    except Exception as exc:
        text = str(exc) if isinstance(exc, EvosearchError) else f"{type(exc).__name__}: {exc}"
        _record(recorder, before, f"failed: {text}")
        raise
    return found


def _record(recorder: Recorder, before: int, reason: str) -> None:
    try:
        if _is_open(recorder, before):
            recorder.record([("stopped", {"reason": reason})])
    except EvosearchError as exc:
        recorder.watcher.note(f"cannot record that the search stopped ({reason}): {exc}")


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
