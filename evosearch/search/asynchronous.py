"""Asynchronous loop: proposes a candidate whenever a slot is free, and reports each score as it arrives.

Executors get more jobs than they have slots, so that a free worker has its next job at once and slow candidates do not
block others. The order of asks and tells differs from run to run; it is recorded, which is all that replay needs.

A duplicate of a running candidate waits for that candidate's score and is reported after it. When the budget is used
up, pending candidates are still scored and reported; if that removes the reason to stop (an improvement resets
`patience`), the search continues.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evosearch.search.candidates import Candidates
from evosearch.search.optimizer import Optimizer
from evosearch.search.progress import Progress
from evosearch.search.protocols import Executor, Outcome
from evosearch.search.recorder import WAIT_S, candidate_of
from evosearch.search.records import Proposal

SLOTS_PER_SPARE = 8  # one queued job per this many slots, at least one; with more, proposals would miss recent results
TURN_S = 0.05  # after asking for this long, check for free workers


@dataclass
class Asynchronous:
    """Search by single candidates; see `Controller` for one by generations.

    Args:
        pending: Candidates that earlier sessions proposed and did not report, in ask order.
        allowed: Wanted number of candidates → number that the budget allows.
        reason: Returns why to stop asking now, or None.
        progress: Number of pending candidates → progress to show.
        settled: Called after outcomes are recorded; gives up if all fail.
    """

    candidates: Candidates
    executor: Executor
    optimizer: Optimizer
    pending: Sequence[Proposal]
    allowed: Callable[[int], int]
    reason: Callable[[], str | None]
    progress: Callable[[int], Progress]
    settled: Callable[[], None]
    _open: dict[str, Proposal] = field(default_factory=dict)  # pending candidates
    _running: set[str] = field(default_factory=set)  # with the executor
    _duplicates: dict[str, list[Proposal]] = field(default_factory=dict)  # running candidate → its duplicates
    _ready: list[Proposal] = field(default_factory=list)  # to report next

    def run(self) -> str:
        """Search until there is a reason to stop and every candidate is reported; return the reason."""
        recorder = self.candidates.recorder
        for proposal in self.pending:
            self._enter(proposal)
        while True:
            self._tell()
            reason = self.reason()
            if reason is None:
                self._ask()
            elif not self._open:
                return reason
            recorder.watcher.update(self.progress(len(self._open)))
            if self._ready:
                continue  # duplicates of scored candidates
            has_capacity = reason is None and self._wanted() > 0
            outcomes = self.executor.wait(0.0 if has_capacity else WAIT_S)
            if outcomes:
                recorder.settle(outcomes)
                self._take(outcomes)
                self.settled()

    def _wanted(self) -> int:
        """Return how many more candidates to ask for, so that the queue is full and few duplicates wait."""
        slots = self.executor.slots
        most = slots + max(1, slots // SLOTS_PER_SPARE)
        return min(most - len(self._running), 2 * most - len(self._open))

    def _ask(self) -> None:
        """Ask for candidates for up to TURN_S, in batches of 1, 2, 4, …, so that the first starts at once."""
        began, portion = time.monotonic(), 1
        count = self.allowed(self._wanted())
        while count > 0:
            some = min(count, portion, max(1, self.optimizer.population))  # it may have fewer left
            for proposal in self.candidates.ask(self.optimizer, some, together=False):
                self._enter(proposal)
            count, portion = self.allowed(self._wanted()), 2 * portion
            if count > 0 and (time.monotonic() - began > TURN_S or self.reason() is not None):
                return

    def _enter(self, proposal: Proposal) -> None:
        """Submit a candidate, unless it is scored already or duplicates a running one."""
        name = proposal.candidate
        self._open[name] = proposal
        if self.candidates.is_done(proposal):
            self._ready.append(proposal)
        elif proposal.duplicate_of is not None:
            self._duplicates.setdefault(proposal.duplicate_of, []).append(proposal)
        else:
            self._running.add(name)
            self.executor.submit(self.candidates.job(proposal))

    def _take(self, outcomes: Sequence[Outcome]) -> None:
        for name in [candidate_of(outcome.job) for outcome in outcomes]:
            self._running.remove(name)
            self._ready += [self._open[name], *self._duplicates.pop(name, ())]

    def _tell(self) -> None:
        """Report the results that are ready; each candidate is its own group."""
        if self._ready:
            self.candidates.tell(self.optimizer, [(proposal.group, [proposal]) for proposal in self._ready])
            for proposal in self._ready:
                del self._open[proposal.candidate]
            self._ready = []
