"""The end of a search on its ledger, whatever ends it: done, failed, or told to stop, also twice and at any moment.

An interrupt (SIGINT, SIGTERM) is a KeyboardInterrupt that may be raised between any two steps. Once one has arrived
where the end is recorded, later ones are ignored until that is done, which takes seconds.
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
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 2.0  # an interrupt that did not arrive (Python drops those in a finaliser) is tried again no sooner


class Interrupt:
    """What a signal does meanwhile."""

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        self._not_before = 0.0

    def arrived(self) -> None:
        """No more of them."""
        self._not_before = math.inf
        self._hurry()

    def __call__(self, signum: int, frame: Any) -> None:
        if (now := time.monotonic()) >= self._not_before:
            self._not_before = now + AGAIN_S
            self._hurry()
            raise KeyboardInterrupt


def on_record(recorder: Recorder, search: Callable[[], tuple[str, Found]]) -> Found:
    """Do what `search` does, and record why it ended; nothing where it had not recorded that it started.

    Where an interrupt or a failure cannot be recorded, as the server is away, that is said; what happened is raised.

    Args:
        search: records `started`; gives the reason why it stopped, and its result.

    Raises:
        KeyboardInterrupt: it was interrupted, also where somebody's handler made a SystemExit of it.
        LedgerError: it ended by itself, and that cannot be recorded.
    """
    before = recorder.state.last_seq
    with _interrupts(recorder.ledger.hurry) as interrupt:
        try:
            try:
                return _ended_by_itself(recorder, before, search)
            except (KeyboardInterrupt, SystemExit):
                interrupt.arrived()
        except KeyboardInterrupt:  # a second one, before that line; a third is not due yet
            interrupt.arrived()
        _record(recorder, before, "interrupted")
        raise KeyboardInterrupt


def _ended_by_itself(recorder: Recorder, before: int, search: Callable[[], tuple[str, Found]]) -> Found:
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
        recorder.watcher.note(f"that it stopped ({reason}) is not on record: {exc}")


def _is_open(recorder: Recorder, before: int) -> bool:
    """Whether the search is on record as started, in this session, and not as ended.

    Read, as an interrupt may have come between a commit and what follows it.
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
    # Whoever ignores one goes on ignoring it: a shell's background jobs do SIGINT
    taken = [number for number, handler in kept.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in taken:
            signal.signal(number, interrupt)
        yield interrupt
    finally:
        for number in taken:
            signal.signal(number, kept[number])
