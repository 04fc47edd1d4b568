"""How long a search takes, when it ends and what that costs, from one candidate that is scored as all will be."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from evosearch.evaluation.types import SPLITS
from evosearch.preflight.cost import Counts, counts_of, counts_with, minibatch_of
from evosearch.preflight.dry_run import NoPlaceError, attempt
from evosearch.search.optimizers.registry import create
from evosearch.search.progress import Watcher
from evosearch.search.state import SearchState
from evosearch.setup.prepare import Prepared
from evosearch.spec.spec import WorkersConfig


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


@dataclass(frozen=True)
class Done:
    """What a search has on record.

    Attributes:
        candidates: asked, and scored or failed.
        baselines: the same.
        hours: that its sessions took.
    """

    candidates: int
    baselines: int
    hours: float

    @classmethod
    def of(cls, state: SearchState) -> "Done":
        baselines = sum((name, "search") in state.done for name in state.baselines)
        return cls(len(state.finished), baselines, state.seconds_before / 3600.0)

    @property
    def any(self) -> bool:
        return self.candidates + self.baselines > 0


def hours_of(pace: Pace, counts: Counts, baselines: int, limit: float | None = None) -> tuple[float, float]:
    """How long a search takes at most.

    Args:
        counts: of evaluations; those of `search` are baselines, and what is rescored for finalists.
        baselines: how many of these are baselines: they come first, the rest after the search.
        limit: the budget's hours: baselines and candidates stop at them, what follows does not.

    Returns:
        Hours until the search has stopped asking, and until its winner is decided on.
    """
    search = pace.start + pace.all_of("search", baselines) + pace.candidates(counts.candidates)
    if limit is not None:
        search = min(search, limit * 3600.0)
    rest = pace.all_of("search", counts.search - baselines)
    rest += pace.all_of("validation", counts.validation) + pace.all_of("test", counts.test)
    return search / 3600.0, (search + rest) / 3600.0


def forecast(
    prepared: Prepared, watcher: Watcher, note: Callable[[str], None], gate: bool = True, done: Done | None = None
) -> dict[str, Any]:
    """What `check --json` prints of a trial candidate and of the whole search, or of what is left of it.

    Args:
        note: told what the forecast rests on, and why there is none.
        gate: see `cost`.
        done: what is on record of this search.

    Returns:
        Nothing where no worker has a place now.

    Raises:
        InputError: the trial fails, or nobody of the cluster scores it.
    """
    try:
        trial = attempt(prepared, watcher, note)
    except NoPlaceError as none:
        note(f"{none}: no candidate was tried, so time is not forecast")
        return {}
    assert trial.outcome.card is not None
    minibatches = len(prepared.minibatches.batches) if prepared.minibatches else 1
    whole = _whole(prepared, trial.seconds, trial.outcome.seconds.get("score"), minibatches)
    pace = Pace(trial.start, trial.seconds, whole, trial.workers, _together(prepared))
    found = of_pace(prepared, pace, note, gate, done) | {"tokens_per_candidate": trial.outcome.card.tokens.forwarded}
    return found | ({"worker": trial.measured} if trial.measured else {})


def of_pace(
    prepared: Prepared, pace: Pace, note: Callable[[str], None], gate: bool = True, done: Done | None = None
) -> dict[str, Any]:
    """What is forecast of a search, or of what is left of it, at a pace; see `forecast`."""
    spec = prepared.spec
    items = len(prepared.minibatches.batches[0] if prepared.minibatches else prepared.batches["search"])
    baselines = sum(baseline.recipe is not None for baseline in prepared.baselines)
    counts = counts_of(spec, prepared.baselines, items, gate)
    limit = spec.config.budget.hours
    if done is not None and done.any:
        note(f"{done.candidates} candidates are on record already: time and price are of what is left")
        baselines -= done.baselines
        limit = None if limit is None else max(0.0, limit - done.hours)
    if counts is None:
        assert limit is not None
        left = max(0.0, limit * 3600.0 - pace.start - pace.all_of("search", baselines))
        counts = counts_with(spec, prepared.baselines, max(1, int(left / 3600.0 * pace.per_hour)), gate)
    elif done is not None:
        counts = replace(counts, candidates=max(0, counts.candidates - done.candidates))
    if done is not None:
        counts = replace(counts, search=counts.search - done.baselines)
    search, total = hours_of(pace, counts, baselines, limit)
    return {
        "seconds_per_candidate": pace.candidate,
        "candidates_per_hour": pace.per_hour,
        "search_hours": search,
        "total_hours": total,
        "workers": pace.workers,
        "dimensions": len(prepared.space.dimensions),
        "items": items,
    } | end_of(total, pace.workers, spec.config.workers)


def pace_of(prepared: Prepared, seconds: Mapping[str, float], workers: int) -> Pace:
    """The pace of a search whose workers are there, from what a recipe took on all of `search`.

    Args:
        seconds: of its card: `materialize`, `score`.
    """
    minibatches = len(prepared.minibatches.batches) if prepared.minibatches else 1
    scoring = seconds["score"]
    on_minibatch = sum(seconds.values()) - scoring + scoring / minibatches
    whole = _whole(prepared, on_minibatch, scoring / minibatches, minibatches)
    return Pace(0.0, on_minibatch, whole, max(1, workers), _together(prepared))


def end_of(hours: float, workers: int, config: WorkersConfig, now: datetime | None = None) -> dict[str, Any]:
    """When a search that begins now ends, by the clock of this machine, and its price where an hour has one."""
    ends = (now or datetime.now().astimezone()) + timedelta(hours=hours)
    price = config.price_per_hour
    priced = {} if price is None else {"price": price * workers * hours}
    return {"ends": ends.isoformat(timespec="seconds")} | priced


def _whole(prepared: Prepared, seconds: float, scoring: float | None, minibatches: int) -> dict[str, float]:
    """Split → seconds of one recipe on all of it: scoring takes longer by as much as there is more to be read.

    Args:
        seconds, scoring: of one candidate on one of the minibatches, in all and for scoring alone.
    """
    scored = minibatch_of(prepared.tokens["search"], minibatches)
    scoring = seconds if scoring is None else min(seconds, scoring)
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
