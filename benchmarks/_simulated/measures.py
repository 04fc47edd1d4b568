"""Measurements of `benchmarks.schedule`, each run in a new process."""

import gc
import math
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks._simulated.searches import heavy_tailed, score, search
from benchmarks._simulated.workers import SimulatedWorkers, utilization
from benchmarks._simulated.world import World
from evosearch.evaluation.types import Estimate
from evosearch.search.budget import Budget
from evosearch.search.optimizer import Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.protocols import Outcome
from evosearch.search.space.dimensions import Genome, Observation

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """One search of the benchmark.

    Attributes:
        least: Claimed minimum of the utilization; None for no claim.
        most_ms: Claimed maximum of the controller time per candidate; None for no claim.
        known: Number of observations with which the optimizer is warm-started.
    """

    optimizer: str
    workers: int
    candidates: int
    asynchronous: bool = True
    models: int = 5  # 60 dimensions per model; 2 if not per layer
    per: str | None = "layer"
    options: tuple[tuple[str, Any], ...] = ()
    least: float | None = None
    most_ms: float | None = None
    known: int = 0
    clock: str = "wall"

    def config(self) -> dict[str, Any]:
        """The optimizer section of a spec."""
        return {"name": self.optimizer, "seed": 1, "asynchronous": self.asynchronous, **dict(self.options)}


def busy(setting: Setting) -> dict[str, Any]:
    """Measure utilization and controller time per candidate of one search."""
    world = World(models=setting.models, per=setting.per)
    workers = SimulatedWorkers(setting.workers, heavy_tailed(), score(world), CLOCKS[setting.clock])
    with tempfile.TemporaryDirectory() as folder:
        make = _warm_started(setting.known) if setting.known else None
        reason, recorder = search(Path(folder), world, workers, setting.config(), Budget(setting.candidates), make)
        recorder.ledger.close()
    assert reason == "candidates", reason
    return {
        "optimizer": setting.optimizer,
        "asynchronous": setting.asynchronous,
        "workers": setting.workers,
        "candidates": setting.candidates,
        "dimensions": len(world.space.dimensions),
        "known": setting.known,
        "utilization": utilization(workers),
        "least": setting.least,
        "controller_ms": 1000.0 * workers.own_s / setting.candidates,
        "most_ms": setting.most_ms,
        "simulated_hours": workers.now / 3600.0,
    }


class MeasuredWorkers(SimulatedWorkers):
    """Simulated workers that sample the memory of this process after given numbers of outcomes."""

    def __init__(self, at: tuple[int, ...], *given: Any) -> None:
        super().__init__(*given)
        self._at, self._done = at, 0
        self.resident: dict[int, float] = {}  # outcomes → MiB

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Wait as usual, and sample the memory when a mark is passed."""
        found = super().wait(timeout_s)
        before, self._done = self._done, self._done + len(found)
        for count in self._at:
            if before < count <= self._done:
                gc.collect()
                self.resident[count] = psutil.Process(os.getpid()).memory_info().rss / MIB
        self._left = self._clock()
        return found


def memory(setting: Setting) -> dict[str, Any]:
    """Measure memory after a tenth of the candidates and after all of a long search, and the size of its ledger."""
    world = World(models=setting.models, per=setting.per)
    at = (setting.candidates // 10, setting.candidates)
    workers = MeasuredWorkers(at, setting.workers, heavy_tailed(), score(world), CLOCKS[setting.clock])
    with tempfile.TemporaryDirectory() as folder:
        _, recorder = search(Path(folder), world, workers, setting.config(), Budget(setting.candidates))
        recorder.ledger.close()
        database = Path(folder) / "ledger.db"
        with sqlite3.connect(database) as connection:
            (events,) = connection.execute("SELECT SUM(LENGTH(CAST(payload AS BLOB))) FROM ledger_events").fetchone()
            (scores,) = connection.execute("SELECT SUM(LENGTH(data)) FROM ledger_scores").fetchone()
        size = database.stat().st_size
    few, many = (workers.resident[count] for count in at)
    return {
        "optimizer": setting.optimizer,
        "dimensions": len(world.space.dimensions),
        "items": len(world.batch),
        "candidates": list(at),
        "resident_mib": [few, many],
        "growth_kib_per_candidate": 1024.0 * (many - few) / (at[1] - at[0]),
        "ledger_bytes_per_candidate": size / setting.candidates,
        "of_these_events": events / setting.candidates,
        "of_these_item_scores": scores / setting.candidates,
    }


def _warm_started(count: int) -> Callable[[OptimizerConfig, World, Genome], Optimizer]:
    """Factory of an optimizer that is warm-started with `count` random candidates."""

    def make(config: OptimizerConfig, world: World, start: Genome) -> Optimizer:
        dimensions = world.space.dimensions
        drawn = create(OptimizerConfig(name="random", seed=2, start="init"), dimensions, start).ask(count)
        known = [
            Observation(str(index), genome, (Estimate(-_distance(genome, start), 0.0, 1),))
            for index, genome in enumerate(drawn)
        ]
        known.sort(key=lambda one: -one.objectives[0].value)
        return create(config, dimensions, start, known=known)

    return make


def _distance(one: Genome, other: Genome) -> float:
    return math.dist([float(value) for value in one.values()], [float(value) for value in other.values()])
