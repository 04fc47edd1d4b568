"""Forecast of a search: duration, end and price, from the time that one candidate takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from evosearch.durations import duration
from evosearch.evaluation.types import SPLITS
from evosearch.preflight.asks import Asked, answers_of, asks_in
from evosearch.preflight.cost import minibatch_tokens, ranked_tokens
from evosearch.preflight.counts import Counts, counts_for, counts_of
from evosearch.preflight.dry_run import NoPlaceError, dry_run
from evosearch.search.progress import Watcher
from evosearch.search.sampling import BACKWARD
from evosearch.search.state import SearchState
from evosearch.setup.prepare import Prepared
from evosearch.spec.config import WorkersConfig


@dataclass(frozen=True)
class Pace:
    """Speed of evaluations.

    Attributes:
        start: Seconds until the first evaluation starts.
        candidate: Seconds per candidate, on the items of the search.
        full: Split → seconds per recipe on the full split.
        workers: Number of workers that score in parallel.
        population: Candidates per generation; None in asynchronous mode.
    """

    start: float
    candidate: float
    full: Mapping[str, float]
    workers: int
    population: int | None = None

    @property
    def per_hour(self) -> float:
        """Candidates per hour, including the time that workers wait for the end of a generation."""
        if self.population is None:
            return 3600.0 / self.candidate * self.workers
        return 3600.0 / self.candidate * self.population / math.ceil(self.population / self.workers)

    def candidates(self, count: int) -> float:
        """Seconds for this many candidates."""
        if self.population is None:
            return count * self.candidate / self.workers
        generations, rest = divmod(count, self.population)
        rounds = generations * math.ceil(self.population / self.workers) + math.ceil(rest / self.workers)
        return rounds * self.candidate

    def on_full(self, split: str, count: int) -> float:
        """Seconds for this many recipes on a full split."""
        return math.ceil(count / self.workers) * self.full[split]


@dataclass(frozen=True)
class Done:
    """Recorded work of a search.

    Attributes:
        candidates: Number of candidates that were scored or failed.
        baselines: Number of baselines that were scored or failed.
        hours: Hours that its runs took.
    """

    candidates: int
    baselines: int
    hours: float

    @classmethod
    def of(cls, state: SearchState) -> "Done":
        """Recorded work in a search's state."""
        baselines = sum((name, "search") in state.done for name in state.baselines)
        return cls(len(state.finished), baselines, state.seconds_before / 3600.0)

    @property
    def any(self) -> bool:
        """Whether any work is recorded."""
        return self.candidates + self.baselines > 0


def hours_of(pace: Pace, counts: Counts, baselines: int, limit: float | None = None) -> tuple[float, float]:
    """Longest duration of a search.

    Args:
        pace: Speed of evaluations.
        counts: Numbers of evaluations.
        baselines: How many of `counts.search` are baselines, which come first; the others come after the search.
        limit: The budget's hours, at which baselines and candidates stop, also those of a placebo; what follows does
            not.

    Returns:
        Hours until the last candidate is proposed, and until the winner is decided.
    """
    search = pace.start + pace.on_full("search", baselines) + pace.candidates(counts.candidates)
    placebo = pace.candidates(counts.placebo)
    if limit is not None:
        search, placebo = min(search, limit * 3600.0), min(placebo, limit * 3600.0)
    rest = placebo + counts.training * pace.candidate + pace.on_full("search", counts.search - baselines)
    rest += pace.on_full("validation", counts.validation) + pace.on_full("test", counts.test)
    return search / 3600.0, (search + rest) / 3600.0


def forecast(
    prepared: Prepared, watcher: Watcher, note: Callable[[str], None], done: Done | None = None
) -> dict[str, Any]:
    """Forecast of a search, or of the rest of it, by a dry run; as `check --json` prints it.

    Args:
        prepared: The search.
        watcher: Shows what is being prepared.
        note: Receives notes on the forecast's assumptions, or why there is none.
        done: Recorded work.

    Returns:
        The forecast; empty if no worker can be placed.

    Raises:
        InputError: The dry run fails, or its candidate is not scored in time.
    """
    try:
        run = dry_run(prepared, watcher, note)
    except NoPlaceError as none:
        note(f"{none}: no dry run, and so no forecast of time")
        return {}
    assert run.outcome.card is not None
    ratio = _minibatches(prepared)
    full = _on_full_splits(prepared, run.seconds, run.outcome.seconds.get("score"), ratio)
    candidate = run.seconds if run.gradient is None else _mean_seconds(prepared, run.gradient, full["search"])
    pace = Pace(run.start, candidate, full, run.workers, _population(prepared))
    found = forecast_at(prepared, pace, note, done) | {"tokens_per_candidate": run.outcome.card.tokens.forwarded}
    return found | ({"worker": run.measured} if run.measured else {})


def forecast_at(
    prepared: Prepared, pace: Pace, note: Callable[[str], None], done: Done | None = None
) -> dict[str, Any]:
    """Forecast of a search, or of the rest of it, at a given pace; see `forecast`."""
    spec = prepared.spec
    items = len(prepared.minibatches.batches[0] if prepared.minibatches else prepared.batches["search"])
    asks = asks_in(prepared)
    answers = answers_of(prepared.optimizer, asks)
    baselines = sum(baseline.recipe is not None for baseline in prepared.baselines)
    counts = counts_of(spec, prepared.baselines, items, asks, answers)
    limit = spec.config.budget.hours
    if done is not None and done.any:
        note(f"{done.candidates} candidates are on record already: time and price are those of the rest")
        baselines = max(0, baselines - done.baselines)
        limit = None if limit is None else max(0.0, limit - done.hours)
    if counts is None:
        assert limit is not None
        left = max(0.0, limit * 3600.0 - pace.start - pace.on_full("search", baselines))
        found = max(1, int(left / 3600.0 * pace.per_hour))
        asked = Asked(found) if asks is None else asks.first(found)
        counts = counts_for(spec, prepared.baselines, asked, answers)
    elif done is not None:
        counts = replace(counts, candidates=max(0, counts.candidates - done.candidates))
    if done is not None:
        counts = replace(counts, search=max(baselines, counts.search - done.baselines))
    search, total = hours_of(pace, counts, baselines, limit)
    if limit is not None and total > limit:
        after = "it ends the search; pending candidates, finalists, test and export come after it"
        note(f"budget.hours has {duration(3600 * limit)} left, and the run takes {duration(3600 * total)}: {after}")
    return {
        "seconds_per_candidate": pace.candidate,
        "candidates_per_hour": pace.per_hour,
        "search_hours": search,
        "total_hours": total,
        "workers": pace.workers,
        "dimensions": len(prepared.space.dimensions),
        "items": items,
    } | end_of(total, pace.workers, spec.config.workers)


def measured_pace(prepared: Prepared, seconds: Mapping[str, float], workers: int) -> Pace:
    """Pace of a search whose workers have started.

    Args:
        prepared: The search.
        seconds: Seconds that a recipe took on what models are compared on of the search split: `materialize`, `score`.
        workers: Number of workers.
    """
    minibatches, scoring = _minibatches(prepared), seconds["score"]
    others = sum(seconds.values()) - scoring
    candidate = others + scoring / minibatches
    full = _on_full_splits(prepared, candidate, scoring / minibatches, minibatches)
    if asks := asks_in(prepared):
        gradient = others + (1 + BACKWARD) * scoring * asks.shard / asks.ranked
        candidate = _mean_seconds(prepared, gradient, full["search"])
    return Pace(0.0, candidate, full, max(1, workers), _population(prepared))


def end_of(hours: float, workers: int, config: WorkersConfig, now: datetime | None = None) -> dict[str, Any]:
    """When a search that starts now ends, in local time, and its price if the spec has one per hour."""
    ends = (now or datetime.now().astimezone()) + timedelta(hours=hours)
    price = config.price_per_hour
    priced = {} if price is None else {"price": price * workers * hours}
    return {"ends": ends.isoformat(timespec="seconds")} | priced


def _minibatches(prepared: Prepared) -> float:
    """Return how many minibatches like the first make up what models are compared on; 1 without minibatches."""
    if prepared.steps is not None:
        return len(prepared.steps.ranked) / len(prepared.steps.batches[0])
    return len(prepared.minibatches.batches) if prepared.minibatches else 1


def _mean_seconds(prepared: Prepared, gradient: float, full: float) -> float:
    """Mean seconds of a candidate of a search by gradients.

    Args:
        prepared: The search.
        gradient: Seconds to differentiate a shard.
        full: Seconds to score what models are compared on of the search split.
    """
    asks = asks_in(prepared)
    assert asks is not None
    return asks.gradient_share * gradient + (1.0 - asks.gradient_share) * full


def _on_full_splits(prepared: Prepared, seconds: float, scoring: float | None, minibatches: float) -> dict[str, float]:
    """Split → seconds per recipe on what models are compared on; scoring time is proportional to the tokens.

    Args:
        prepared: The search.
        seconds: Seconds of one candidate on one minibatch.
        scoring: Seconds of these that were spent scoring; None if unknown.
        minibatches: Number of minibatches.
    """
    ranked = prepared.tokens | {"search": ranked_tokens(prepared.tokens["search"], asks_in(prepared))}
    scored = minibatch_tokens(ranked["search"], minibatches)
    scoring = seconds if scoring is None else min(seconds, scoring)
    amount = max(1, scored.distinct + scored.generated_at_most)
    share = {split: (tokens.distinct + tokens.generated_at_most) / amount for split, tokens in ranked.items()}
    return {split: seconds - scoring + scoring * share[split] for split in SPLITS}


def _population(prepared: Prepared) -> int | None:
    config = prepared.optimizer
    return None if config.asynchronous else config.population_for(prepared.space.dimensions)
