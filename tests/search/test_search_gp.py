"""The Gaussian process: learning from few candidates, and its limits."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from evosearch.errors import SpecError
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.space.dimensions import Dimension, Estimate, Genome, Observation

TWO = tuple(Dimension(f"x{i}", "float", 0.9, low=-1.0, high=1.0) for i in range(2))
START: Genome = {"x0": 0.9, "x1": 0.9}


def sphere(genome: Genome) -> float:
    return -sum((float(value) - 0.3) ** 2 for value in genome.values())


def scored(genome: Genome, *values: float, violation: float = 0.0) -> Observation:
    violations = (violation,) if violation else ()
    return Observation("0", genome, tuple(Estimate(value, 0.1, 10) for value in values), violations)


def failed(genome: Genome) -> Observation:
    return Observation("0", genome, (), (), "failed")


def search(
    outcome: Callable[[Genome], Observation],
    candidates: int = 20,
    known: Sequence[Observation] = (),
    objectives: int = 1,
    population: int = 2,
) -> list[Observation]:
    config = OptimizerConfig(name="gp", seed=1, population=population)
    optimizer = create(config, TWO, START, objectives=objectives, known=known)
    told: list[Observation] = []
    while len(told) < candidates:
        told += (found := [outcome(genome) for genome in optimizer.ask(population)])
        optimizer.tell(found)
    return told


def test_finds_an_optimum_in_twenty_candidates() -> None:
    told = search(lambda genome: scored(genome, sphere(genome)))
    assert max(o.objectives[0].value for o in told[:11]) < -0.005  # ten random ones after the start
    assert max(o.objectives[0].value for o in told) > -0.0005


def test_failures_repel_without_a_value() -> None:
    told = search(lambda genome: failed(genome) if float(genome["x0"]) > 0 else scored(genome, float(genome["x1"])), 22)
    assert sum(o.state == "failed" for o in told[:11]) >= 1
    assert sum(o.state == "failed" for o in told[-8:]) <= 1
    assert max(o.objectives[0].value for o in told if o.objectives) > 0.95


def test_a_constraint_that_excludes_the_optimum_is_kept() -> None:
    def outcome(genome: Genome) -> Observation:
        return scored(genome, sphere(genome), violation=max(0.0, 10 * sum(float(value) for value in genome.values())))

    told = search(outcome, 20)
    kept = [o.objectives[0].value for o in told if o.violation == 0]
    assert -0.25 < max(kept) <= -0.18  # at 0: the nearest point of x0 + x1 = 0
    assert max(kept) > max(o.objectives[0].value for o in told[:11] if o.violation == 0)


def test_without_feasible_candidates_the_least_violation_is_searched() -> None:
    def outcome(genome: Genome) -> Observation:
        violation = 50 + 10 * (1 + float(genome["x1"]))
        return failed(genome) if float(genome["x0"]) > 0 else scored(genome, 5.0, violation=violation)

    late = search(outcome, 18)[-6:]
    first = late[::2] if late[0].state == "scored" else late[1::2]  # the other of a pair explores
    assert all(o.state == "scored" for o in first)
    assert np.mean([float(o.genome["x1"]) for o in first]) < -0.9


def test_two_objectives_are_traded_off() -> None:
    def outcome(genome: Genome) -> Observation:
        x = np.array(list(genome.values()), dtype=float)
        return scored(genome, -float(((x + 0.5) ** 2).sum()), -float(((x - 0.5) ** 2).sum()))

    told = search(outcome, 22, objectives=2)
    assert all(abs(float(o.genome["x0"]) - float(o.genome["x1"])) < 0.3 for o in told[-5:])  # the line between optima
    assert len({round(float(o.genome["x0"]), 2) for o in told[-5:]}) > 2


def test_known_candidates_of_another_search_are_the_start() -> None:
    draw = np.random.default_rng(0)
    genomes: list[Genome] = [{name: float(draw.uniform(-1, 1)) for name in START} for _ in range(12)]
    known = [scored(genome, sphere(genome)) for genome in genomes]
    told = search(lambda genome: scored(genome, sphere(genome)), 6, known=known)
    assert told[0].genome == START
    assert max(o.objectives[0].value for o in told[1:]) > -0.001  # without random ones
    strange = [replace(one, objectives=one.objectives * 2) for one in known]
    cold = search(lambda genome: scored(genome, sphere(genome)), 6, known=strange)
    assert max(o.objectives[0].value for o in cold[1:]) < -0.01


def test_more_than_twenty_dimensions_are_refused() -> None:
    many = [Dimension(f"w{i}", "float", 0.5) for i in range(21)]
    said = r"night.yaml: optimizer.name: gp takes at most 20 dimensions, but the recipe's holes have 21.*`per: group`"
    with pytest.raises(SpecError, match=said):
        create(OptimizerConfig(name="gp"), many, {d.name: d.init for d in many}, where="night.yaml: optimizer")


def test_ends_at_three_hundred_trials_known_ones_included() -> None:
    genomes = [{"x0": -1 + 2 * i / 300, "x1": 0.0} for i in range(300)]
    known = [scored(genome, sphere(genome)) for genome in genomes]
    optimizer = create(OptimizerConfig(name="gp", population=8), TWO, START, known=known)
    assert optimizer.stop_reason() is None  # only the best hundred known ones count
    told = [failed(dict(START)), *(failed(genome) for genome in genomes[:199])]
    asked = iter([dict(START), *genomes])
    optimizer._proposed = lambda: next(asked)  # type: ignore[attr-defined]  # 200 fits would take minutes
    next(asked)
    for index in range(0, 200, 8):
        assert optimizer.stop_reason() is None
        assert optimizer.population == min(8, 200 - index)
        optimizer.ask(optimizer.population)
        optimizer.tell(told[index : index + 8])
    assert str(optimizer.stop_reason()).startswith("gp: reached 300 trials, 100 of them from the warm start")
