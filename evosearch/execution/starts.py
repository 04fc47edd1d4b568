"""Failed starts of workers: start another, after growing pauses, or end the search."""

import time
from collections.abc import Callable

from evosearch.errors import InputError, SearchError

START_DEATHS = 3  # in a row, with no other worker left, until the search stops
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0  # before the next start while workers keep failing


class Starts:
    """Counts workers that fail during start, one after another.

    Args:
        notice: Called with a sentence for the user.
        clock: Seconds on a monotonic clock.
    """

    def __init__(self, notice: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._notice, self._clock = notice, clock
        self._failed, self._not_before = 0, clock()

    @property
    def may_go_on(self) -> bool:
        """Whether the next worker may be started now."""
        return self._clock() >= self._not_before

    def succeeded(self) -> None:
        """Reset the count: a worker has started."""
        self._failed = 0

    def died(self, reason: str, others: bool) -> None:
        """Record that a worker was lost during its start.

        Args:
            reason: One line.
            others: Whether other workers score, or may yet.

        Raises:
            SearchError: It was the last of several in a row, and there are no others.
        """
        self._failed += 1
        if self._failed >= START_DEATHS and not others:
            raise SearchError(f"workers die during start: {reason}")
        self._pause(f"a worker was lost during start: {reason}")

    def unfit(self, worker: str, problem: InputError, others: bool) -> None:
        """Record that a worker could not be built. If others can be, or may yet, the problem is its node's.

        Raises:
            InputError: The problem, if there are no others.
        """
        if not others:
            raise problem
        self._failed = max(self._failed + 1, START_DEATHS)  # starting another at once would fail alike
        self._pause(f"{worker} cannot score: {problem}")

    def _pause(self, what: str) -> None:
        if self._failed < START_DEATHS:
            self._notice(f"{what}; starting another")
            return
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._failed - START_DEATHS))
        self._not_before = self._clock() + pause
        self._notice(f"{what}; starting the next in {pause:.0f} s")
