"""Charts of the search's own run: one point for each generation that the optimizer is told.

| metric | value |
|---|---|
| generation/best_fitness, mean_fitness, spread_fitness | as the optimizer is told; spread: standard deviation |
| generation/best_score, mean_score, spread_score | the same of the scores, where right answers are read |
| generation/genome_spread | root mean square of the standard deviations of all numbers: the step size in effect |
| gradient/norm | of the gradient in all dimensions, of a gradient step |
| progress/candidates_per_hour | from the first proposal of the generation to its report |
| progress/utilization | share of the time since the last point in which workers worked, 0 to 1 |
| progress/failures | candidates that failed so far |
| cost/worker_hours | time on workers so far, baselines included |
| cost/items | item evaluations of candidates so far; a gradient counts as three |

Asynchronous searches report each candidate alone: there, one point is of at least `FEWEST` candidates.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from evosearch.evaluation.types import SPLITS
from evosearch.search.records import Reported, is_candidate
from evosearch.search.sampling import BACKWARD
from evosearch.tracking.changes import Point
from evosearch.tracking.metrics import FRACTION, POINTS, readable, seconds_of

FEWEST = 10  # candidates of a point of an asynchronous search
HOUR_MS = 3_600_000


class Generations:
    """Points of the search's own run, as its events are read."""

    def __init__(self) -> None:
        self._began: dict[int, int] = {}  # group → time of its first proposal
        self._last = 0  # time of the last point, or of the start of the session
        self._numbers: dict[str, dict[str, float]] = {}  # candidate that is not told yet → numbers of its genome
        self._scores: dict[str, float] = {}  # the same → its score
        self._gradients: dict[str, Sequence[float]] = {}  # the same → its gradient
        self._waiting: list[Reported] = []  # told since the last point
        self._groups: set[int] = set()  # groups of these
        self._workers: set[str] = set()  # of this session
        self._worked = 0.0  # seconds, since the last point
        self._hours, self._items, self._failures = 0.0, 0, 0

    def started(self, now: int) -> None:
        """Begin a session, before which no worker was paid for."""
        self._last, self._worked = now, 0.0
        self._workers.clear()

    def asked(self, payload: Mapping[str, Any], now: int) -> None:
        """Take a proposal."""
        self._began.setdefault(int(payload.get("group", 0)), now)
        numbers = {name: value for name, value in (payload.get("genome") or {}).items() if _is_number(value)}
        self._numbers[str(payload["candidate"])] = {name: float(value) for name, value in numbers.items()}

    def scored(self, payload: Mapping[str, Any]) -> None:
        """Take a score card of any split."""
        name = str(payload["candidate"])
        self._work(payload)
        if is_candidate(name) and payload["split"] == SPLITS[0]:
            self._items += int(payload["fitness"].get("n", 0))
            if payload["score"] is not None and name in self._numbers:
                self._scores[name] = float(payload["score"])

    def differentiated(self, payload: Mapping[str, Any]) -> None:
        """Take a gradient."""
        self._work(payload)
        self._items += (1 + BACKWARD) * int(payload["fitness"].get("n", 0))
        self._gradients[str(payload["candidate"])] = payload.get("gradient", ())

    def failed(self, payload: Mapping[str, Any]) -> None:
        """Count a failure on the search split, and the time that it took if that is known."""
        if payload.get("seconds"):
            self._work(payload)
        self._failures += is_candidate(str(payload["candidate"])) and payload.get("split", SPLITS[0]) == SPLITS[0]

    def restarted(self) -> None:
        """Forget what is proposed and never told."""
        for pending in (self._began, self._numbers, self._scores, self._gradients, self._waiting, self._groups):
            pending.clear()

    def told(self, group: int, observations: Sequence[Reported], now: int) -> list[Point]:
        """Return the points of a generation; none for single candidates that wait for more."""
        self._groups.add(group)
        self._waiting += observations
        if len(observations) == 1 and not observations[0].gradient and len(self._waiting) < FEWEST:
            return []
        values = self._fitness() | self._score() | self._spread() | self._gradient() | self._progress(now)
        for one in self._waiting:
            for pending in (self._numbers, self._scores, self._gradients):
                pending.pop(one.candidate, None)
        self._waiting.clear()
        self._groups.clear()
        self._last, self._worked = now, 0.0
        return [Point(name, value, group, now) for name, value in values.items() if math.isfinite(value)]

    def _work(self, payload: Mapping[str, Any]) -> None:
        seconds = seconds_of(payload)
        self._worked += seconds
        self._hours += seconds / 3600
        self._workers.add(str(payload.get("worker", "")))

    def _fitness(self) -> dict[str, float]:
        values = [one.fitness.value for one in self._waiting if one.fitness is not None and not one.gradient]
        return _summary("fitness", values, FRACTION)

    def _score(self) -> dict[str, float]:
        values = [self._scores[one.candidate] for one in self._waiting if one.candidate in self._scores]
        return _summary("score", values, POINTS)

    def _spread(self) -> dict[str, float]:
        names = [one.candidate for one in self._waiting if not one.gradient]
        known = [self._numbers[name] for name in names if name in self._numbers]
        if len(known) < 2:
            return {}
        spreads = [pstdev(one.get(name, 0.0) for one in known) for name in known[0]]
        if not spreads:
            return {}
        return {"generation/genome_spread": readable(math.sqrt(fmean(one * one for one in spreads)), FRACTION)}

    def _gradient(self) -> dict[str, float]:
        """Return the norm of a step's gradient, which is the sum of those of its shards."""
        shards = [found for one in self._waiting if one.gradient and (found := self._gradients.get(one.candidate))]
        if not shards:
            return {}
        return {"gradient/norm": math.hypot(*(math.fsum(slopes) for slopes in zip(*shards, strict=True)))}

    def _progress(self, now: int) -> dict[str, float]:
        found = {
            "progress/failures": float(self._failures),
            "cost/worker_hours": readable(self._hours, FRACTION),
            "cost/items": float(self._items),
        }
        began = min(self._began.pop(group, now) for group in self._groups)
        if now > began:
            found["progress/candidates_per_hour"] = readable(len(self._waiting) * HOUR_MS / (now - began), 1)
        if now > self._last and self._workers:
            share = 1000 * self._worked / (len(self._workers) * (now - self._last))
            found["progress/utilization"] = readable(min(1.0, share), POINTS)
        return found


def _summary(what: str, values: Sequence[float], decimals: int) -> dict[str, float]:
    if not values:
        return {}
    found = {"best": max(values), "mean": fmean(values)} | ({"spread": pstdev(values)} if len(values) > 1 else {})
    return {f"generation/{name}_{what}": readable(value, decimals) for name, value in found.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
