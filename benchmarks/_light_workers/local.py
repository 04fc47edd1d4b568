"""Light workers in this process: an executor whose jobs only take time."""

import heapq
import time
from collections import deque

from benchmarks._simulated.world import World
from evosearch.search.protocols import Job, Outcome


class LightExecutor:
    """Executor of light jobs, several at a time.

    Args:
        world: Search problem, which computes the score cards.
        seconds: Duration of a job.
        slots: Jobs at a time.
    """

    def __init__(self, world: World, seconds: float, slots: int) -> None:
        self._world, self._seconds, self.slots = world, seconds, slots
        self._queue: deque[Job] = deque()
        self._running: list[tuple[float, int, Job]] = []  # heap of (end, number, job)
        self._started = 0

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)
        self._start()

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return the jobs that have ended; wait for the first one, up to a timeout."""
        self._start()
        if not self._running:
            return []
        time.sleep(max(0.0, min(self._running[0][0] - time.monotonic(), timeout_s)))
        ended = []
        while self._running and self._running[0][0] <= time.monotonic():
            ended.append(heapq.heappop(self._running)[2])
        self._start()
        seconds = {"score": self._seconds}
        return [Outcome(job, "light", card=self._world.card(job), seconds=seconds) for job in ended]

    def close(self) -> None:
        """Drop all jobs."""
        self._queue.clear()
        self._running.clear()

    def _start(self) -> None:
        while self._queue and len(self._running) < self.slots:
            self._started += 1
            heapq.heappush(self._running, (time.monotonic() + self._seconds, self._started, self._queue.popleft()))
