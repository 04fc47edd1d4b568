"""How long a search takes, when it ends and what that costs, from one candidate that is scored as all will be."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from evosearch.errors import InputError, SearchError, SpecError
from evosearch.evaluation.types import SPLITS
from evosearch.execution.local import LocalExecutor
from evosearch.search.optimizers.registry import create
from evosearch.search.ports import Executor, Job, Outcome
from evosearch.search.watching import Watcher
from evosearch.service.cost import Counts, counts_of, counts_with, part_of
from evosearch.service.executors import cluster_of, make_executor, worker_config, worker_count
from evosearch.service.prepare import Prepared
from evosearch.service.spec import WorkersConfig

LONGEST_TRIAL_S = 1800.0  # until a trial is given up: a node may have to start, and to fetch the models
TURN_S = 5.0


@dataclass(frozen=True)
class Pace:
    """How fast evaluations go. Times are seconds.

    Attributes:
        start: until the first evaluation begins.
        candidate: of one candidate, on the items that it is searched on.
        whole: split → of one recipe on all items of it.
        workers: that score at once.
        together: candidates that are asked for together, and waited for; None: each follows as a worker becomes free.
    """

    start: float
    candidate: float
    whole: Mapping[str, float]
    workers: int
    together: int | None = None

    @property
    def per_hour(self) -> float:
        """Candidates in an hour. Workers idle at the end of a generation that they do not share evenly."""
        if self.together is None:
            return 3600.0 / self.candidate * self.workers
        return 3600.0 / self.candidate * self.together / math.ceil(self.together / self.workers)

    def candidates(self, count: int) -> float:
        """How long so many candidates take."""
        if self.together is None:
            return count * self.candidate / self.workers
        generations, rest = divmod(count, self.together)
        rounds = generations * math.ceil(self.together / self.workers) + math.ceil(rest / self.workers)
        return rounds * self.candidate

    def all_of(self, split: str, count: int) -> float:
        """How long so many recipes take on all of a split."""
        return math.ceil(count / self.workers) * self.whole[split]


def hours_of(pace: Pace, counts: Counts, controls: int, limit: float | None = None) -> tuple[float, float]:
    """How long a search takes at most.

    Args:
        counts: of evaluations; those of `search` are controls, and what is rescored for finalists.
        controls: how many of these are controls: they come first, the rest after the search.
        limit: the budget's hours: controls and candidates stop at them, what follows does not.

    Returns:
        Hours until the search has stopped asking, and until its winner is decided on.
    """
    search = pace.start + pace.all_of("search", controls) + pace.candidates(counts.candidates)
    if limit is not None:
        search = min(search, limit * 3600.0)
    rest = pace.all_of("search", counts.search - controls)
    rest += pace.all_of("validation", counts.validation) + pace.all_of("test", counts.test)
    return search / 3600.0, (search + rest) / 3600.0


def forecast(prepared: Prepared, watcher: Watcher, gate: bool = True) -> dict[str, Any]:
    """What `check --json` prints of a trial candidate and of the whole search.

    Args:
        gate: see `cost`.

    Raises:
        InputError: the trial fails, or nobody of the cluster scores it.
    """
    spec = prepared.spec
    start, seconds, outcome, workers, measured = _trial(prepared, watcher)
    assert outcome.card is not None
    parts = prepared.parts.batches if prepared.parts else ()
    items = len(parts[0]) if parts else len(prepared.batches["search"])
    pace = Pace(start, seconds, _whole(prepared, seconds, outcome, len(parts)), workers, _together(prepared))
    controls = sum(control.recipe is not None for control in prepared.controls)
    counts = counts_of(spec, prepared.controls, items, gate)
    limit = spec.config.budget.hours
    if counts is None:
        assert limit is not None
        left = max(0.0, limit * 3600.0 - start - pace.all_of("search", controls))
        counts = counts_with(spec, prepared.controls, max(1, int(left / 3600.0 * pace.per_hour)), gate)
    search, total = hours_of(pace, counts, controls, limit)
    return {
        "seconds_per_candidate": seconds,
        "candidates_per_hour": pace.per_hour,
        "search_hours": search,
        "total_hours": total,
        "workers": workers,
        "dimensions": len(prepared.space.dimensions),
        "items": items,
        "tokens_per_candidate": outcome.card.tokens.forwarded,
        **({"worker": measured} if measured else {}),
    } | end_of(total, workers, spec.config.workers)


def end_of(hours: float, workers: int, config: WorkersConfig, now: datetime | None = None) -> dict[str, Any]:
    """When a search that begins now ends, by the clock of this machine, and its price where an hour has one."""
    ends = (now or datetime.now().astimezone()) + timedelta(hours=hours)
    price = config.price_per_hour
    priced = {} if price is None else {"price": price * workers * hours}
    return {"ends": ends.isoformat(timespec="seconds")} | priced


def _trial(prepared: Prepared, watcher: Watcher) -> tuple[float, float, Outcome, int, dict[str, Any] | None]:
    """Seconds until the first candidate is scored less those of one, seconds of one, how it went, the workers, and how
    much one runs at once, where it is here to be asked.

    A candidate's seconds are those of the second of two: the first also lays out what stays.
    """
    spec = prepared.spec
    workers = spec.config.workers
    parts = prepared.parts.batches if prepared.parts else (prepared.batches["search"],)
    jobs = [Job(f"trial@search.{number}", prepared.example, parts[0]) for number in range(2)]
    began = time.monotonic()
    executor: Executor
    if cluster_of(workers):
        executor = make_executor(workers.model_copy(update={"count": 1}), prepared, watcher)
    else:
        count, _ = worker_count(workers)
        dtype = prepared.example.output_dtype
        config = worker_config(workers, prepared.models, prepared.suite, dtype, count or 1)
        executor = LocalExecutor(config, watcher.preparing, prepared.harness)
    try:
        _score(executor, jobs[0], workers, spec.where)
        started = time.monotonic()
        outcome = _score(executor, jobs[1], workers, spec.where)
        seconds = time.monotonic() - started
        working = _workers(workers, executor)
        measured = executor.worker.measured() if isinstance(executor, LocalExecutor) else None
    finally:
        executor.close()
    return max(0.0, started - began - seconds), seconds, outcome, working, measured


def _workers(workers: WorkersConfig, executor: Executor) -> int:
    """How many score at once: as many as are asked for, or as the cluster has room for now."""
    count, _ = worker_count(workers)
    room: Callable[[], int] = getattr(executor, "room", lambda: 1)
    return count if count is not None else max(1, room())


def _score(executor: Executor, job: Job, workers: WorkersConfig, where: str) -> Outcome:
    """
    Raises:
        InputError: the candidate fails, or there is no answer in time.
    """
    executor.submit(job)
    deadline = time.monotonic() + LONGEST_TRIAL_S
    while time.monotonic() < deadline:
        try:
            outcomes = executor.wait(TURN_S)
        except SearchError as error:
            raise SpecError(f"{where.partition(': ')[0]}: workers", f"no worker could start: {error}") from error
        for outcome in outcomes:
            if outcome.failure is not None:
                raise InputError(where, f"a trial candidate fails: {outcome.failure.reason}")
            return outcome
    cluster, minutes = cluster_of(workers), round(LONGEST_TRIAL_S / 60)
    what = f"nobody of {cluster} scored a trial candidate in {minutes} minutes"
    raise SpecError(f"{where.partition(': ')[0]}: workers", what, next="Does any of its nodes have room for a worker?")


def _whole(prepared: Prepared, seconds: float, outcome: Outcome, parts: int) -> dict[str, float]:
    """Split → seconds of one recipe on all of it: scoring takes longer by as much as there is more to be read."""
    scored = part_of(prepared.tokens["search"], parts or 1)
    scoring = min(seconds, outcome.seconds.get("score", seconds))
    amount = max(1, scored.distinct + scored.generated_at_most)
    found = {split: prepared.tokens[split] for split in SPLITS}
    share = {split: (tokens.distinct + tokens.generated_at_most) / amount for split, tokens in found.items()}
    return {split: seconds - scoring + scoring * share[split] for split in SPLITS}


def _together(prepared: Prepared) -> int | None:
    config = prepared.spec.config
    if config.optimizer.asynchronous:
        return None
    space, objectives = prepared.space, len(config.objectives or ()) or 1
    return create(config.optimizer, space.dimensions, space.initial(), "optimizer", objectives).population
