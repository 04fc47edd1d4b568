"""Executor that passes the teachers of a suite's tasks on with every job."""

from collections.abc import Mapping
from dataclasses import replace

from evosearch.evaluation.types import Teacher
from evosearch.search.protocols import Executor, Job, Outcome


class TaughtExecutor:
    """Executor of a search whose fitness needs teachers.

    Args:
        executor: Scores the jobs.
        teachers: Task → its teacher.
    """

    def __init__(self, executor: Executor, teachers: Mapping[str, Teacher]) -> None:
        self._executor, self._teachers = executor, teachers

    @property
    def slots(self) -> int:
        """Number of jobs that can run at once now."""
        return self._executor.slots

    def submit(self, job: Job) -> None:
        """Queue a job with the teachers."""
        self._executor.submit(replace(job, teachers=self._teachers))

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return outcomes as the executor does."""
        return self._executor.wait(timeout_s)

    def close(self) -> None:
        """Release the workers."""
        self._executor.close()
