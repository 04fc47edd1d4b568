"""Work that no signal interrupts: Python raises KeyboardInterrupt in the main thread alone, so others do the work."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

Result = TypeVar("Result")


def uninterrupted(work: Callable[[], Result]) -> Result:
    """Run some work to its end and return its result; an interrupt is raised afterwards.

    Raises:
        KeyboardInterrupt: It was interrupted. Before its begin: it is not done at all.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    task = _Task(work)
    try:
        threading.Thread(target=task.run, name="ledger", daemon=True).start()
        task.done.wait()
    except BaseException:
        while not task.withdrawn() and not task.done.is_set():
            with suppress(KeyboardInterrupt):  # the first one counts
                task.done.wait()
        raise
    return task.result()


class _Task(Generic[Result]):
    """Work that is done once, or withdrawn before it has begun."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self.done = threading.Event()
        self._work, self._begun = work, threading.Lock()
        self._withdrawn = False
        self._found: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work, unless it was withdrawn."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            self._found.append(self._work())
        except BaseException as exc:  # raised in the thread that waits
            self._error = exc
        finally:
            self.done.set()

    def withdrawn(self) -> bool:
        """Withdraw the work if it has not begun; return whether it never will."""
        self._withdrawn = self._withdrawn or self._begun.acquire(blocking=False)
        return self._withdrawn

    def result(self) -> Result:
        """Return the result, or raise the error."""
        if self._error is not None:
            raise self._error
        return self._found[0]
