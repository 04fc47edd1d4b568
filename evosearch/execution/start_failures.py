"""Workers that fail during start: retry with exponential backoff, or end the search."""

import time
from collections.abc import Callable

from evosearch.errors import InputError, SearchError

MAX_FAILURES = 3  # consecutive failures, without any other worker, until the search stops
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0  # before the next start once workers fail repeatedly


class StartFailures:
    """Count of consecutive failed starts, and the pause before the next start.

    Args:
        notice: Called with a sentence for the user.
        clock: Returns seconds on a monotonic clock.
    """

    def __init__(self, notice: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._notice, self._clock = notice, clock
        self._failed, self._not_before = 0, clock()

    @property
    def paused(self) -> bool:
        """Whether the next start has to wait."""
        return self._clock() < self._not_before

    def reset(self) -> None:
        """Reset the count after a successful start."""
        self._failed = 0

    def lost(self, reason: str, others: bool) -> None:
        """Record that a worker was lost during its start.

        Args:
            reason: One line.
            others: Whether other workers score, or may do so later.

        Raises:
            SearchError: There are no others, and this was the last allowed failure.
        """
        self._failed += 1
        if self._failed >= MAX_FAILURES and not others:
            raise SearchError(f"workers die during start: {reason}")
        self._pause(f"a worker was lost during start: {reason}")

    def not_built(self, worker: str, problem: InputError, others: bool) -> None:
        """Record that a worker could not be built; its node is assumed to be the cause if there are others.

        Raises:
            InputError: The problem, if there are no others.
        """
        if not others:
            raise problem
        self._failed = max(self._failed + 1, MAX_FAILURES)  # an immediate retry would fail in the same way
        self._pause(f"{worker} cannot score: {problem}")

    def _pause(self, what: str) -> None:
        if self._failed < MAX_FAILURES:
            self._notice(f"{what}; starting another")
            return
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._failed - MAX_FAILURES))
        self._not_before = self._clock() + pause
        self._notice(f"{what}; starting the next in {pause:.0f} s")
