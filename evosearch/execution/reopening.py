"""An executor that can be closed and used again, for work that needs its workers' memory in between."""

from collections.abc import Callable

from evosearch.search.protocols import Executor, Job, Outcome


class ReopeningExecutor:
    """Executor that makes another one at its creation, and a new one when it is used after `close`.

    Args:
        make: Makes an executor.
    """

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._executor: Executor | None = make()

    @property
    def slots(self) -> int:
        """Number of jobs that can run at once now; 0 while it is closed."""
        return self._executor.slots if self._executor is not None else 0

    def submit(self, job: Job) -> None:
        """Queue a job; returns at once, or after the workers are requested."""
        if self._executor is None:
            self._executor = self._make()
        self._executor.submit(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return outcomes; see `Executor.wait`."""
        return self._executor.wait(timeout_s) if self._executor is not None else []

    def close(self) -> None:
        """Release the workers until the next job is submitted."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None
