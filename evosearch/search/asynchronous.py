"""The loop that never idles: a candidate is asked whenever there is room, and told as soon as it is scored.

Executors are kept with more jobs than they have slots, so that a worker that becomes free has its next one at once and
a candidate that takes long holds up nobody. What was asked and told, in what order, is recorded as it happens: replay
needs no more, although another run would see another order.

A duplicate of what is being scored waits for it, and is told after it. When the budget ends, what was asked is still
scored and told; if that changes the reason to stop (a patience that is renewed by what came in), the search goes on.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evosearch.search.candidates import Candidates
from evosearch.search.optimizers.registry import Optimizer
from evosearch.search.progress import Progress
from evosearch.search.protocols import Executor, Outcome
from evosearch.search.recorder import WAIT_S, candidate_of
from evosearch.search.records import Proposal

SLOTS_PER_SPARE = 8  # one job ahead for every so many slots, at least one: more would be asked knowing less
TURN_S = 0.05  # asking for longer than this, the loop looks first who has become free


@dataclass
class Asynchronous:
    """One optimizer, asked and told as workers become free.

    Args:
        pending: asked in an earlier session and not told, in ask order.
        room: how many are wanted → how many the budget allows.
        reason: why to stop asking now, or None.
        progress: how many are asked and not told → what to show.
        settled: called after outcomes are recorded: gives up where all fail.
    """

    candidates: Candidates
    executor: Executor
    optimizer: Optimizer
    pending: Sequence[Proposal]
    room: Callable[[int], int]
    reason: Callable[[], str | None]
    progress: Callable[[int], Progress]
    settled: Callable[[], None]
    _open: dict[str, Proposal] = field(default_factory=dict)  # asked and not told
    _running: set[str] = field(default_factory=set)  # with the executor
    _behind: dict[str, list[Proposal]] = field(default_factory=dict)  # candidate with the executor → its duplicates
    _ready: list[Proposal] = field(default_factory=list)  # to be told next

    def run(self) -> str:
        """Search until something says stop and all that was asked is told; returns the reason."""
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
                continue  # duplicates of what is scored already
            hungry = reason is None and self._wanted() > 0
            outcomes = self.executor.wait(0.0 if hungry else WAIT_S)
            if outcomes:
                recorder.settle(outcomes)
                self._take(outcomes)
                self.settled()

    def _wanted(self) -> int:
        """How many more to ask: up to a spare job for every few slots; duplicates may wait, but not without end."""
        slots = self.executor.slots
        most = slots + max(1, slots // SLOTS_PER_SPARE)
        return min(most - len(self._running), 2 * most - len(self._open))

    def _ask(self) -> None:
        """Ask for a moment: one, which starts at once, then twice as many, which are recorded together, and so on."""
        began, portion = time.monotonic(), 1
        count = self.room(self._wanted())
        while count > 0:
            some = min(count, portion, max(1, self.optimizer.population))  # it may have no more than these to ask
            for proposal in self.candidates.ask(self.optimizer, some, together=False):
                self._enter(proposal)
            count, portion = self.room(self._wanted()), 2 * portion
            if count > 0 and (time.monotonic() - began > TURN_S or self.reason() is not None):
                return

    def _enter(self, proposal: Proposal) -> None:
        """Hand a candidate to the executor, unless it is scored already, or another like it is with the executor."""
        name = proposal.candidate
        self._open[name] = proposal
        if self.candidates.is_done(proposal):
            self._ready.append(proposal)
        elif proposal.duplicate_of is not None:
            self._behind.setdefault(proposal.duplicate_of, []).append(proposal)
        else:
            self._running.add(name)
            self.executor.submit(self.candidates.job(proposal))

    def _take(self, outcomes: Sequence[Outcome]) -> None:
        for name in [candidate_of(outcome.job) for outcome in outcomes]:
            self._running.remove(name)
            self._ready += [self._open[name], *self._behind.pop(name, ())]

    def _tell(self) -> None:
        """Tell what is known now, one by one: each candidate is a group of its own."""
        if self._ready:
            self.candidates.tell(self.optimizer, [(proposal.group, [proposal]) for proposal in self._ready])
            for proposal in self._ready:
                del self._open[proposal.candidate]
            self._ready = []
