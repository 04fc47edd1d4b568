"""The search loop: ask, score, record, tell. This module searches by generations, `asynchronous` by single candidates.

The ledger is the controller's only state. Every event is committed before anything acts on it, so that a search that is
killed at any moment can be resumed: the optimizer is rebuilt by replay, scored candidates are not scored again, and
pending ones are scored now.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evosearch.errors import ReplayError, SearchError
from evosearch.evaluation.types import ItemBatch
from evosearch.recipe.schema import Recipe
from evosearch.search.asynchronous import Asynchronous
from evosearch.search.baselines import Baseline
from evosearch.search.budget import Budget, hours
from evosearch.search.candidates import Candidates
from evosearch.search.optimizer import AsksForGradients, Optimizer
from evosearch.search.progress import Progress
from evosearch.search.protocols import Executor, Job, Minibatches
from evosearch.search.recorder import Recorder, job_id
from evosearch.search.records import BaselineRecord, CandidateRecord, Proposal, RestartRecord, is_candidate
from evosearch.search.replay import replay as replay_events
from evosearch.search.sampling import Sampling
from evosearch.search.space.dimensions import Evaluation, Genome
from evosearch.search.space.space import SearchSpace

MAX_FAILURES = 8  # failures after which a search without any scored candidate gives up
# Value of `optimizer.start` → kinds of baselines
START_FROM = {"init": (), "best_baseline": ("stage", "uniform", "scale"), "parents": ("stage", "parent")}


@dataclass
class Controller:
    """The loop of one search, resumed from its ledger.

    Args:
        recorder: Access to the ledger and its folded state.
        executor: Scores candidates.
        space: The search space.
        batch: The search split.
        baselines: Baselines to score first.
        identify: Recipe → recipe_id, with this search's inputs.
        make_optimizer: Start genome → a fresh optimizer.
        minibatches: Subsets of `batch`: each generation is scored on one of them, or as the optimizer decides.
        objectives: Objectives of the optimizer, if there are several (see `objectives`).
        start: Where the optimizer starts: `init`, `best_baseline` or `parents`.
        warm_start: Start genome found by another search, instead of `start`.
        budget: When to stop.
        asynchronous: Ask whenever a slot is free and tell as scores arrive, instead of generation by generation.
        continue_from_best: If the record cannot be replayed, continue with a new optimizer from the best candidate.
    """

    recorder: Recorder
    executor: Executor
    space: SearchSpace
    batch: ItemBatch
    baselines: Sequence[Baseline]
    identify: Callable[[Recipe], str]
    make_optimizer: Callable[[Genome], Optimizer]
    minibatches: Minibatches | None = None
    objectives: tuple[str, ...] = ()
    start: str = "best_baseline"
    warm_start: Genome | None = None
    budget: Budget = field(default_factory=Budget)
    asynchronous: bool = False
    continue_from_best: bool = False

    def __post_init__(self) -> None:
        self.state = self.recorder.state
        recorder = self.recorder
        self._items = Sampling(
            self.batch, self.minibatches, recorder.ledger, recorder.search_id, self.state, self.objectives
        )
        self._candidates = Candidates(recorder, self.space, self._items, self.identify)
        self._began: float | None = None  # time at which this session's first candidate was submitted
        self._finished_before = len(self.state.finished)

    def run(self) -> str:
        """Search until there is a reason to stop.

        Returns:
            The reason of the budget (see `Budget`) or of the optimizer.

        Raises:
            SearchError: Every candidate fails, or the recorded search cannot be replayed.
        """
        self._score_baselines()
        self._score_recorded_answers()  # left by a session that was killed; new candidates may be their duplicates
        optimizer, pending = self._restore()
        reason = self._one_by_one(optimizer, pending) if self.asynchronous else self._by_generations(optimizer, pending)
        self._score_answers(optimizer)
        return reason

    def replay(self) -> int:
        """Repeat the recorded proposals and reports, and nothing else; return the number of proposals compared.

        Raises:
            ReplayError: The optimizer proposes other candidates than the record has.
        """
        self._restore()
        return self.state.proposed - self.state.proposed_before

    def _by_generations(self, optimizer: Optimizer, pending: list[Proposal]) -> str:
        while True:
            if pending:
                self._finish(optimizer, pending)
            reason = self._reason_to_stop(optimizer)
            if reason:
                return reason
            count = self.budget.allowed(optimizer.population, self._candidates)
            pending = self._candidates.ask(optimizer, count)

    def _one_by_one(self, optimizer: Optimizer, pending: Sequence[Proposal]) -> str:
        self._began = time.monotonic()
        return Asynchronous(
            self._candidates,
            self.executor,
            optimizer,
            pending,
            allowed=lambda wanted: self.budget.allowed(wanted, self._candidates),
            reason=lambda: self._reason_to_stop(optimizer),
            progress=lambda left: self._progress(self.state.proposed - left),
            settled=self._give_up_if_hopeless,
        ).run()

    def _score_baselines(self) -> None:
        new = [baseline for baseline in self.baselines if baseline.name not in self.state.baselines]
        if new:
            self.recorder.record([("baseline", self._record_of(baseline).to_payload()) for baseline in new])
        jobs = [
            Job(job_id(baseline.name, self.batch.split), baseline.recipe, self.batch)
            for baseline in self.baselines
            if baseline.recipe is not None and (baseline.name, self.batch.split) not in self.state.done
        ]
        total = sum(baseline.recipe is not None for baseline in self.baselines)
        self.recorder.run(self.executor, jobs, lambda left: Progress("baselines", total - left, total))
        if total and not any(
            baseline.name in self.state.baselines and self._standing(baseline.name) for baseline in self.baselines
        ):
            raise SearchError(f"no baseline could be scored; {self._last_failure()}")
        for task in self.state.limits.keys() - self.state.references().keys():
            what = f"the guard of '{task}' has no reference: no base, parent or stage winner could be scored"
            raise SearchError(f"{what}; {self._last_failure()}")

    def _record_of(self, baseline: Baseline) -> BaselineRecord:
        if baseline.recipe is None:
            return BaselineRecord(baseline.name, baseline.kind, skipped=baseline.skipped)
        return BaselineRecord(baseline.name, baseline.kind, baseline.recipe.to_dict(), self.identify(baseline.recipe))

    def _restore(self) -> tuple[Optimizer, list[Proposal]]:
        """Return the optimizer as the record left it, and its pending candidates."""
        restart, first = self.state.restarted, self.state.proposed_before
        start = dict(restart.start) if restart else self._start_genome()
        optimizer = self._make(start, first)
        try:
            events = self.recorder.ledger.stream(self.recorder.search_id, after=self.state.restarted_at)
            return optimizer, list(replay_events(optimizer, events).pending)
        except ReplayError as exc:
            if not self.continue_from_best:
                raise
            return self._restart(exc), []

    def _restart(self, reason: ReplayError) -> Optimizer:
        """Score pending candidates for the record, and return a fresh optimizer that starts from the best candidate.

        If none is ranked, as in a search by gradients without a held-back part, it starts from the latest step.
        """
        state = self.state
        self._score([state.proposal(name) for name, one in state.candidates.items() if not self._is_done(one)])
        ranked = [(standing, name) for name in state.candidates if (standing := self._standing(name)) is not None]
        steps = [name for name, one in state.candidates.items() if (name, one.minibatch) in state.gradients]
        found = max(ranked)[1] if ranked else steps[-1] if steps else None
        start = self._start_genome() if found is None else dict(state.proposal(found).genome)
        self.recorder.record([("restarted", RestartRecord(start, str(reason)).to_payload())])
        return self._make(start, self.state.proposed)

    def _make(self, start: Genome, first_ask: int) -> Optimizer:
        """Return a fresh optimizer, whose asks are counted from `first_ask`."""
        optimizer = self.make_optimizer(start)
        generation = optimizer.population
        if isinstance(optimizer, AsksForGradients):
            self._candidates.evaluation = optimizer.evaluation
        else:
            self._candidates.evaluation = lambda index: Evaluation(self._items.minibatch(index, generation))
        self._candidates.first_ask = first_ask
        return optimizer

    def _score_answers(self, optimizer: Optimizer) -> None:
        """Record what the optimizer recommends, and score it on the full search split."""
        self._candidates.answer(optimizer)
        self._score_recorded_answers()

    def _score_recorded_answers(self) -> None:
        names = dict.fromkeys(map(self.state.original, self.state.answers.values()))  # equal answers are scored once
        todo = [one for name in names if not self._is_done(one := self.state.proposal(name))]
        jobs = [self._candidates.job(proposal) for proposal in todo]
        total, best = len(self.state.answers), self.state.best()
        if jobs:
            self.recorder.run(self.executor, jobs, lambda left: Progress("answers", total - left, total, best))

    def _start_genome(self) -> Genome:
        """Return the start of the optimizer, which depends only on recorded scores and is the same at every resume."""
        if self.warm_start is not None:
            return dict(self.warm_start)
        scored = [
            (standing, baseline)
            for baseline in self.baselines
            if baseline.kind in START_FROM[self.start]
            and baseline.weights
            and (standing := self._standing(baseline.name)) is not None
        ]
        if not scored:
            return self.space.initial()
        return self.space.with_weight(max(scored, key=lambda pair: pair[0])[1].weights)

    def _finish(self, optimizer: Optimizer, proposals: Sequence[Proposal]) -> None:
        """Score what is not scored yet, then tell group by group in ask order."""
        self._score(proposals)
        for group in sorted({proposal.group for proposal in proposals}):
            self._candidates.tell(optimizer, [(group, [one for one in proposals if one.group == group])])

    def _score(self, proposals: Sequence[Proposal]) -> None:
        self._began = self._began or time.monotonic()
        todo = [one for one in proposals if one.duplicate_of is None and not self._is_done(one)]
        jobs = [self._candidates.job(proposal) for proposal in todo]
        self.recorder.run(self.executor, jobs, lambda left: self._progress(self.state.proposed - left))
        self._give_up_if_hopeless()

    def _is_done(self, candidate: CandidateRecord) -> bool:
        return self._candidates.is_done(candidate)

    def _standing(self, name: str) -> tuple[float, float] | None:
        """Return (-violation, fitness) of a baseline or candidate, where greater is better; None if it has no score."""
        evidence = self.state.evidence(name)
        return None if evidence is None else (-evidence[0], evidence[1])

    def _give_up_if_hopeless(self) -> None:
        if self.state.any_scored:
            return
        failed = [failure for failure in self.state.failed if is_candidate(failure.candidate)]
        if len(failed) >= MAX_FAILURES:
            raise SearchError(f"all {len(failed)} candidates failed; {self._last_failure()}")

    def _last_failure(self) -> str:
        if not self.state.failed:
            return "this search has no such baseline"
        last = self.state.failed[-1]
        return f"the last failure was {last.candidate}: {last.stage}: {last.reason}"

    def _reason_to_stop(self, optimizer: Optimizer) -> str | None:
        reason = self.budget.reason(self._candidates)
        if reason is None and (own := optimizer.stop_reason()):
            return f"optimizer: {own}"
        return reason

    def _progress(self, done: int) -> Progress:
        elapsed = time.monotonic() - (self._began or time.monotonic())
        fresh = len(self.state.finished) - self._finished_before
        rate = fresh / elapsed * 60.0 if fresh and elapsed else None
        total = self.budget.total(self._candidates)
        left = (total - done) / rate * 60.0 if total is not None and rate else None
        if self.budget.hours is not None:
            clock = max(0.0, self.budget.hours - hours(self.state)) * 3600.0
            left = clock if left is None else min(left, clock)
        best = self.state.best()
        return Progress("search", done, total, best, len(self.state.failed), rate, left)
