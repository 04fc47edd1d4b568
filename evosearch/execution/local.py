"""The in-process executor: one worker in this process, jobs in the order they came."""

from collections import deque

from evosearch.evaluation.harness.harness import Harness
from evosearch.execution.worker import Progress, Worker, WorkerConfig
from evosearch.search.protocols import Job, Outcome


class LocalExecutor:
    """Scores one job at each `wait`. The worker is built at the first.

    Args:
        harness: see `Worker`.
    """

    slots = 1

    def __init__(self, config: WorkerConfig, progress: Progress | None = None, harness: Harness | None = None) -> None:
        self._config, self._progress, self._harness = config, progress, harness
        self._queue: deque[Job] = deque()
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._config, self._progress, self._harness)
        return self._worker

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        if not self._queue:
            return []
        worker = self.worker
        return [worker.run(self._queue.popleft())]

    def close(self) -> None:
        self._queue.clear()
        self._worker = None
