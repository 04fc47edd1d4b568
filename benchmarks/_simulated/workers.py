"""Workers that score nothing and take their time: an executor whose clock is simulated.

The time that an evaluation takes is drawn; the time that the search itself takes between two calls is measured and
added to the same clock. As with `RayExecutor`, a worker that becomes free has its next job when the search looks.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from evosearch.evaluation.types import ScoreCard
from evosearch.search.protocols import Failure, Job, Outcome


@dataclass(frozen=True)
class Span:
    """One job under way, in seconds of the simulated clock."""

    job: str
    worker: int
    start: float
    end: float


class SimulatedWorkers:
    """So many workers, each with one job at a time, jobs in the order they came.

    Args:
        duration: job → seconds that it takes.
        score: job → its card, or None: it fails.
        clock: what the search's own time is measured by; one that stands still makes a run reproducible.
    """

    def __init__(
        self,
        count: int,
        duration: Callable[[Job], float],
        score: Callable[[Job], ScoreCard | None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.slots = count
        self.now = 0.0
        self.spans: list[Span] = []
        self.submitted: list[tuple[str, float]] = []  # job, when
        self.own_s = 0.0  # that the search took for itself, from its first job on
        self._duration, self._score, self._clock = duration, score, clock
        self._queue: deque[Job] = deque()
        self._idle = list(range(count))
        self._running: list[tuple[float, int, int, Job]] = []  # heap of (end, order, worker, job)
        self._order = 0
        self._left: float | None = None  # when the search went on by itself; before its first job no time is counted

    def submit(self, job: Job) -> None:
        self._elapse()
        self.submitted.append((job.id, self.now))
        self._queue.append(job)
        self._dispatch()
        self._left = self._clock()

    def wait(self, timeout_s: float) -> list[Outcome]:
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
        return Outcome(job, f"worker:{worker}", card, failure)


def utilization(workers: SimulatedWorkers) -> float:
    """Busy worker seconds over worker seconds, from the first candidate handed over to the last."""
    handed = [when for job, when in workers.submitted if job[0].isdigit()]
    begin, end = handed[0], handed[-1]
    busy = sum(max(0.0, min(span.end, end) - max(span.start, begin)) for span in workers.spans)
    return busy / (workers.slots * (end - begin))
