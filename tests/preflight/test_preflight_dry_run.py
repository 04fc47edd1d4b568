"""Dry runs on a shared cluster: how long they wait for a place, and for how many workers time is forecast."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import SpecError
from evosearch.evaluation.types import ItemBatch
from evosearch.preflight import dry_run
from evosearch.preflight import forecast as forecasts
from evosearch.preflight.check import check
from evosearch.recipe.schema import Input, Recipe
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job, Outcome
from evosearch.spec.config import WorkersConfig

World = Callable[..., Path]
JOB = Job("dry-run@search.0", Recipe(merge_method="linear", models=(Input(model="m"),)), ItemBatch("search", ()))
WORKERS = WorkersConfig.model_validate({"address": "10.0.0.1:6379"})


@dataclass
class Shared:
    """A pool of one worker on a cluster with a fake clock, which each `wait` without a result advances."""

    place_at: float  # seconds, when the worker gets a place
    answer_at: float
    taken: bool = True  # all places, by others
    holds: int = 2
    now: float = 0.0
    slots: int = 0
    jobs: list[Job] = field(default_factory=list)

    @property
    def placed(self) -> int:
        return int(self.now >= self.place_at)

    def busy(self) -> bool:
        return self.taken

    def capacity(self) -> int:
        return self.holds

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        self.now += timeout_s
        return [Outcome(self.jobs.pop(), "w")] if self.now >= self.answer_at else []

    def close(self) -> None: ...


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[Shared], Outcome]:
    def score(pool: Shared) -> Outcome:
        monkeypatch.setattr("time.monotonic", lambda: pool.now)
        return dry_run.scored(pool, JOB, WORKERS, "night.yaml: recipe")

    return score


HOUR = 3600.0


def test_a_busy_cluster_is_not_waited_for(scored: Callable[[Shared], Outcome]) -> None:
    pool = Shared(place_at=HOUR, answer_at=HOUR)
    with pytest.raises(dry_run.NoPlaceError, match="the cluster is busy"):
        scored(pool)
    assert 60 <= pool.now <= 90
    pool = Shared(place_at=40.0, answer_at=50.0)  # one that becomes free is taken
    assert scored(pool).job.id == JOB.id


def test_a_starting_node_is_waited_for_and_a_missing_one_is_not_a_problem(scored: Callable[[Shared], Outcome]) -> None:
    assert scored(Shared(place_at=1500.0, answer_at=1600.0, taken=False)).job.id == JOB.id
    with pytest.raises(dry_run.NoPlaceError, match="the cluster had no place for a worker in 30 minutes"):
        scored(Shared(place_at=9 * HOUR, answer_at=9 * HOUR, taken=False))


def test_a_preparing_worker_has_the_time_limit_of_a_search(scored: Callable[[Shared], Outcome]) -> None:
    """Fetching large models may take longer than half an hour, even if the cluster is busy."""
    assert scored(Shared(place_at=10.0, answer_at=3.9 * HOUR)).job.id == JOB.id
    with pytest.raises(SpecError, match=r"night\.yaml: workers: no worker of 10\.0\.0\.1:6379 scored .* 240 minutes"):
        scored(Shared(place_at=10.0, answer_at=9 * HOUR))


@pytest.mark.parametrize(
    ("asked", "forecast", "told"), [("auto", 2, False), (2, 2, False), (1, 1, False), (9, 2, True)]
)
def test_no_more_workers_are_forecast_than_fit(asked: Any, forecast: int, told: bool) -> None:
    notes: list[str] = []
    workers = WorkersConfig.model_validate({"address": "10.0.0.1:6379", "count": asked})
    assert dry_run.parallel_workers(workers, Shared(0.0, 0.0), notes.append) == forecast
    text = "2 of 9 workers fit on the cluster's current nodes: the forecast assumes 2"
    assert notes == ([text] if told else [])


def test_without_a_place_a_check_passes_and_notes_that_there_is_no_forecast(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*arguments: Any) -> dry_run.DryRun:
        raise dry_run.NoPlaceError("the cluster is busy")

    monkeypatch.setattr(forecasts, "dry_run", busy)
    result = check(world(workers={"address": "127.0.0.1:1", "count": 1}), dry_run=True, watcher=Silent())
    assert result.ok
    assert "the cluster is busy: no dry run, and so no forecast of time" in result.notes
    assert result.forecast["tokens"]
    assert "total_hours" not in result.forecast
