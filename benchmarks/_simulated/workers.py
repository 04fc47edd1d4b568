"""Executor with simulated workers and a simulated clock.

The duration of an evaluation is drawn; the search's own time between two calls is measured and added to the same
clock. As in `RayExecutor`, an idle worker gets its next job only when the search calls the executor.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from evosearch.evaluation.types import GradientCard, ScoreCard
from evosearch.search.protocols import Failure, Job, Outcome


@dataclass(frozen=True)
class Span:
    """Execution of one job, in seconds of the simulated clock."""

    job: str
    worker: int
    start: float
    end: float


class SimulatedWorkers:
    """Workers that run one job each, in the order of submission.

    Args:
        count: Number of workers.
        duration: Job → its duration in seconds.
        score: Job → its score card or gradient card, or None if it fails.
        clock: Measures the search's own time; a constant clock makes a run reproducible.
    """

    def __init__(
        self,
        count: int,
        duration: Callable[[Job], float],
        score: Callable[[Job], ScoreCard | GradientCard | None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.slots = count
        self.now = 0.0
        self.spans: list[Span] = []
        self.submitted: list[tuple[str, float]] = []  # job, time
        self.own_s = 0.0  # the search's own time since its first job
        self._duration, self._score, self._clock = duration, score, clock
        self._queue: deque[Job] = deque()
        self._idle = list(range(count))
        self._running: list[tuple[float, int, int, Job]] = []  # heap of (end, order, worker, job)
        self._order = 0
        self._left: float | None = None  # clock when the last call returned; None before the first job

    def submit(self, job: Job) -> None:
        """Queue a job, and start it if a worker is idle."""
        self._elapse()
        self.submitted.append((job.id, self.now))
        self._queue.append(job)
        self._dispatch()
        self._left = self._clock()

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Advance the clock to the next completed job, by at most `timeout_s`; return the completed jobs."""
        self._elapse()
        self._dispatch()
        if self._running and self._running[0][0] > self.now:
            self.now = min(self._running[0][0], self.now + timeout_s)
        done = []
        while self._running and self._running[0][0] <= self.now:
            _, _, worker, job = heapq.heappop(self._running)
            self._idle.append(worker)
            self._dispatch()
            done.append((worker, job))
        outcomes = [self._outcome(worker, job) for worker, job in done]
        self._left = self._clock()
        return outcomes

    def close(self) -> None:
        """Drop queued jobs."""
        self._queue.clear()

    def _elapse(self) -> None:
        spent = 0.0 if self._left is None else self._clock() - self._left
        self.own_s += spent
        self.now += spent

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            job, worker = self._queue.popleft(), self._idle.pop()
            end = self.now + self._duration(job)
            self.spans.append(Span(job.id, worker, self.now, end))
            heapq.heappush(self._running, (end, self._order, worker, job))
            self._order += 1

    def _outcome(self, worker: int, job: Job) -> Outcome:
        card = self._score(job)
        failure = None if card is not None else Failure("score", "a result is not finite")
        if isinstance(card, GradientCard):
            return Outcome(job, f"worker:{worker}", gradient=card)
        return Outcome(job, f"worker:{worker}", card, failure)


def utilization(workers: SimulatedWorkers) -> float:
    """Share of worker time that is busy, between the first and the last submitted candidate."""
    times = [at for job, at in workers.submitted if job[0].isdigit()]
    begin, end = times[0], times[-1]
    busy = sum(max(0.0, min(span.end, end) - max(span.start, begin)) for span in workers.spans)
    return busy / (workers.slots * (end - begin))
