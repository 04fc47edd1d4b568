"""The parts of `bench/schedule`: simulated workers keep time as real ones would, and every measure runs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._simulated.measures import Setting, busy, memory
from benchmarks._simulated.searches import MEAN_S, heavy_tailed, score
from benchmarks._simulated.workers import SimulatedWorkers, Span, utilization
from benchmarks._simulated.world import World
from evosearch.search.protocols import Job

SCHEDULE = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "schedule"
TINY = World(models=1, per=None, items=5)


def job(index: int) -> Job:
    return Job(f"{index}@search", TINY.space.fill(TINY.space.initial()), TINY.batch)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_clock_is_that_of_the_workers_and_of_the_search() -> None:
    clock = Clock()
    workers = SimulatedWorkers(2, lambda job: 10.0 * (1 + int(job.id[0])), score(TINY), clock)
    clock.now += 50.0  # whatever goes before the first job is not counted
    for index in range(3):
        workers.submit(job(index))
    clock.now += 1.0  # the search thinks
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


def test_an_evaluation_takes_what_is_said_on_average_and_some_take_long() -> None:
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
def test_a_measure_runs(asynchronous: bool) -> None:
    found = busy(Setting("random", 4, 24, asynchronous, models=1))
    assert 0.0 < found["utilization"] <= 1.0 + 1e-9
    assert found["controller_ms"] > 0
    assert found["dimensions"] == 60


def test_memory_is_read_twice() -> None:
    found: dict[str, Any] = memory(Setting("random", 4, 40, models=1))
    assert found["candidates"] == [4, 40]
    assert all(size > 10 for size in found["resident_mib"])
    parts = found["of_these_events"] + found["of_these_item_scores"]
    assert 5_000 < parts < found["ledger_bytes_per_candidate"]


def test_an_optimizer_may_know_trials_before_it_begins() -> None:
    assert busy(Setting("tpe", 2, 4, models=1, known=30))["known"] == 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer", "cmaes"], "argument --optimizer: invalid choice: 'cmaes' (choose from 'cat_cma', "),
        (["--only", "memory", "--optimizer", "gp"], "--only memory measures none of: gp"),
    ],
)
def test_what_leaves_nothing_to_measure_is_refused(arguments: list[str], said: str) -> None:
    command = [sys.executable, str(SCHEDULE), "--quick", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
