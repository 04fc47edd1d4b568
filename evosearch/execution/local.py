"""In-process executor: one worker, which scores jobs in submission order."""

from collections import deque

from evosearch.evaluation.harness.harness import Harness
from evosearch.execution.worker import Progress, Worker
from evosearch.execution.worker_config import WorkerConfig
from evosearch.search.protocols import Job, Outcome


class LocalExecutor:
    """Executor that scores one job per call of `wait`; the first call builds the worker.

    Args:
        progress: Called with the current step and the fraction done.
        harness: See `Worker`.
    """

    slots = 1

    def __init__(self, config: WorkerConfig, progress: Progress | None = None, harness: Harness | None = None) -> None:
        self._config, self._progress, self._harness = config, progress, harness
        self._queue: deque[Job] = deque()
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """The worker, built on first use."""
        if self._worker is None:
            self._worker = Worker(self._config, self._progress, self._harness)
        return self._worker

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Score the next job, however long it takes."""
        if not self._queue:
            return []
        worker = self.worker
        return [worker.run(self._queue.popleft())]

    def close(self) -> None:
        """Drop queued jobs and the worker."""
        self._queue.clear()
        self._worker = None
