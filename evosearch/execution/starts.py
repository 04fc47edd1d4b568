"""What follows when workers fail while they start: another, after a longer and longer pause, or the end."""

import time
from collections.abc import Callable

from evosearch.errors import InputError, SearchError

START_DEATHS = 3  # in a row, with no other worker left, until the search stops
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0  # before the next is started where workers keep failing


class Starts:
    """Counts workers that fail while they start, one after the other.

    Args:
        notice: called with a sentence for whoever watches.
    """

    def __init__(self, notice: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._notice, self._clock = notice, clock
        self._failed, self._not_before = 0, clock()

    @property
    def may_go_on(self) -> bool:
        """Whether the next may be started now."""
        return self._clock() >= self._not_before

    def succeeded(self) -> None:
        self._failed = 0

    def died(self, reason: str, others: bool) -> None:
        """A worker was lost while it started.

        Args:
            others: there are workers that score, or that may yet.

        Raises:
            SearchError: it is the last of several.
        """
        self._failed += 1
        if self._failed >= START_DEATHS and not others:
            raise SearchError(f"workers die while they start: {reason}")
        self._pause(f"a worker was lost while it started: {reason}")

    def unfit(self, worker: str, problem: InputError, others: bool) -> None:
        """A worker could not be built. Where others can, or may yet, the trouble is its node's.

        Raises:
            InputError: there are none.
        """
        if not others:
            raise problem
        self._failed = max(self._failed + 1, START_DEATHS)  # the same would come out at once
        self._pause(f"{worker} cannot score: {problem}")

    def _pause(self, what: str) -> None:
        if self._failed < START_DEATHS:
            self._notice(f"{what}; starting another")
            return
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._failed - START_DEATHS))
        self._not_before = self._clock() + pause
        self._notice(f"{what}; the next is started in {pause:.0f} s")
