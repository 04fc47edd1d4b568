"""`benchmarks.schedule`: the clock of simulated workers, and every measurement."""

import sys
from typing import Any

import numpy as np
import pytest

from benchmarks._simulated.measures import Setting, busy, memory
from benchmarks._simulated.searches import MEAN_S, heavy_tailed, score
from benchmarks._simulated.workers import SimulatedWorkers, Span, utilization
from benchmarks._simulated.world import World
from evosearch.search.protocols import Job

TINY = World(models=1, per=None, items=5)


def job(index: int) -> Job:
    return Job(f"{index}@search", TINY.space.fill(TINY.space.initial()), TINY.batch)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_clock_counts_the_workers_and_the_search() -> None:
    clock = Clock()
    workers = SimulatedWorkers(2, lambda job: 10.0 * (1 + int(job.id[0])), score(TINY), clock)
    clock.now += 50.0  # time before the first job is not counted
    for index in range(3):
        workers.submit(job(index))
    clock.now += 1.0  # time of the search itself
    assert [outcome.job.id for outcome in workers.wait(5.0)] == []
    assert workers.now == 6.0
    assert [outcome.job.id for outcome in workers.wait(60.0)] == ["0@search"]
    clock.now += 12.0  # 22: the second ended at 20
    assert [outcome.job.id for outcome in workers.wait(60.0)] == ["1@search"]
    workers.submit(job(3))
    assert workers.spans == [
        Span("0@search", 0 if workers.spans[0].worker == 0 else 1, 0.0, 10.0),
        Span("1@search", workers.spans[1].worker, 0.0, 20.0),
        Span("2@search", workers.spans[0].worker, 10.0, 40.0),
        Span("3@search", workers.spans[1].worker, 22.0, 62.0),
    ]
    assert workers.own_s == 13.0
    assert utilization(workers) == pytest.approx((10 + 20 + 12) / (2 * 22))


def test_durations_have_the_documented_mean_and_tail() -> None:
    seconds = np.array([heavy_tailed()(job(index)) for index in range(4000)])
    assert seconds.mean() == pytest.approx(MEAN_S, rel=0.1)
    assert np.median(seconds) == pytest.approx(36.4, rel=0.1)
    assert 0.005 < (seconds > 6.2 * MEAN_S).mean() < 0.015
    assert heavy_tailed()(job(7)) == heavy_tailed()(job(7))


def test_a_card_is_a_function_of_the_recipe() -> None:
    one, other = TINY.card(job(0)), TINY.card(job(1))
    assert one.fitness == other.fitness
    genome = TINY.space.initial() | {"models[0].weight": 1.4}
    assert TINY.card(Job("2@search", TINY.space.fill(genome), TINY.batch)).fitness != one.fitness
    assert len(World().space.dimensions) == 300


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_measurement_runs(asynchronous: bool) -> None:
    found = busy(Setting("random", 4, 24, asynchronous, models=1))
    assert 0.0 < found["utilization"] <= 1.0 + 1e-9
    assert found["controller_ms"] > 0
    assert found["dimensions"] == 60


def test_memory_is_sampled_twice() -> None:
    found: dict[str, Any] = memory(Setting("random", 4, 40, models=1))
    assert found["candidates"] == [4, 40]
    assert all(size > 10 for size in found["resident_mib"])
    payloads = found["of_these_events"] + found["of_these_item_scores"]
    assert 5_000 < payloads < found["ledger_bytes_per_candidate"]


def test_an_optimizer_may_be_warm_started() -> None:
    assert busy(Setting("tpe", 2, 4, models=1, known=30))["known"] == 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer", "cmaes"], "argument --optimizer: invalid choice: 'cmaes' (choose from 'cat_cma', "),
        (["--only", "memory", "--optimizer", "gp"], "argument --only: memory has no measurement of gp"),
    ],
)
def test_a_selection_without_measurements_is_rejected(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # set by the import; monkeypatch restores it
    from benchmarks import schedule

    monkeypatch.setattr(sys, "argv", ["schedule", "--quick", *arguments])
    with pytest.raises(SystemExit) as stop:
        schedule.main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
