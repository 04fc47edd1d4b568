"""CatCMA beyond the laws: subsets under noise, doubt, conditional numbers, spaces of one kind."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from evosearch.search.optimizer import Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.optimizers import _cmaes
from evosearch.search.optimizers.cat_cma import CatCma
from evosearch.search.space.dimensions import Dimension, Estimate, Genome, Observation

Fitness = Callable[[Genome], float | None]


def floats(count: int, init: float = 0.9) -> tuple[Dimension, ...]:
    return tuple(Dimension(f"x{i}", "float", init, low=-1.0, high=1.0) for i in range(count))


def binary(count: int, doubt: float | None = None) -> tuple[Dimension, ...]:
    return tuple(Dimension(f"b{i}", "categorical", False, choices=(False, True), doubt=doubt) for i in range(count))


def make(name: str, dimensions: Sequence[Dimension], **options: object) -> Optimizer:
    config = OptimizerConfig.model_validate({"name": name, **options})
    return create(config, dimensions, {dimension.name: dimension.init for dimension in dimensions})


def observed(genome: Genome, value: float | None) -> Observation:
    if value is None:
        return Observation("0", genome, (), (), "failed")
    return Observation("0", genome, (Estimate(value, 0.1, 10),))


def search(optimizer: Optimizer, fitness: Fitness, candidates: int) -> list[Observation]:
    told: list[Observation] = []
    while len(told) < candidates and not optimizer.stop_reason():
        group = [observed(genome, fitness(genome)) for genome in optimizer.ask(optimizer.population)]
        optimizer.tell(group)
        told += group
    return told


def test_cat_cma_finds_a_subset_under_noise() -> None:
    """60 inclusions, 20 of them right; the noise of the fitness is as large as three of them."""
    right = set(range(0, 60, 3))
    rng = np.random.default_rng(0)
    count = lambda genome: sum(genome[f"b{i}"] == (i in right) for i in range(60))  # noqa: E731
    told = search(make("cat_cma", binary(60), seed=1), lambda g: count(g) + 3.0 * rng.standard_normal(), 3000)
    assert np.mean([count(o.genome) for o in told[:50]]) < 35
    assert np.mean([count(o.genome) for o in told[-100:]]) > 54


@pytest.mark.parametrize(("doubt", "share"), [(None, 0.5), (0.06, 0.06), (0.0, 0.0052), (1.0, 1 - 0.0052)])
def test_doubt_is_the_share_of_first_draws_that_differ(doubt: float | None, share: float) -> None:
    asked = make("cat_cma", binary(60, doubt), population=50).ask(50)
    found = np.mean([value for genome in asked for value in genome.values()])
    assert found == pytest.approx(share, abs=0.03 if share in (0.5, 0.06) else 0.005)


def test_doubt_is_about_the_start_and_shared_by_the_other_choices() -> None:
    dimension = Dimension("m", "categorical", "a", choices=("a", "b", "c"), doubt=0.5)
    optimizer = create(OptimizerConfig(name="cat_cma", population=400), [dimension], {"m": "b"})
    drawn = [genome["m"] for genome in optimizer.ask(400)]
    assert drawn.count("b") == pytest.approx(200, abs=40)
    assert drawn.count("a") == pytest.approx(100, abs=35)
    assert drawn.count("c") == pytest.approx(100, abs=35)


def hidden(slots: int) -> tuple[Dimension, ...]:
    """Slots whose scale and number of repeats only count if the slot is included, and two free numbers."""
    found: list[Dimension] = []
    for i in range(slots):
        taken = (f"include{i}", (True,))
        found.append(Dimension(f"include{i}", "categorical", False, choices=(False, True), doubt=0.05))
        found.append(Dimension(f"scale{i}", "float", 1.0, low=0.5, high=2.0, log=True, active_if=taken))
        found.append(Dimension(f"times{i}", "int", 3, low=1, high=9, active_if=taken))
    return (*found, *floats(2))


def test_an_unused_number_keeps_its_distribution() -> None:
    dimensions = hidden(20)
    optimizer = make("cat_cma", dimensions, seed=1)
    assert isinstance(optimizer, CatCma)
    strategy = optimizer._strategy
    names = [d.name for d in optimizer._numbers]
    idle_seen, moved = 0, 0
    for _ in range(25):
        mean, steps, spread = strategy._mean.copy(), _cmaes.standard_deviations(strategy), strategy._A.copy()
        asked = optimizer.ask(optimizer.population)
        for genome in asked:
            for i in range(20):
                assert genome[f"include{i}"] or (genome[f"scale{i}"], genome[f"times{i}"]) == (1.0, 3)
        # Rewards the free numbers and, if it has an effect, a large scale
        optimizer.tell([observed(g, float(g["x0"]) - abs(float(g["x1"])) + float(g["scale0"])) for g in asked])
        for index, name in enumerate(names):
            slot = name.lstrip("scaletim")
            same = (
                strategy._mean[index] == pytest.approx(mean[index], rel=1e-12)
                and _cmaes.standard_deviations(strategy)[index] == pytest.approx(steps[index], rel=1e-9)
                and strategy._A[index] == spread[index]
            )
            if name.startswith("x"):
                moved += not same
            elif not any(genome[f"include{slot}"] for genome in asked):
                idle_seen += 1
                assert same, name
            else:
                assert not same, name
    assert idle_seen > 200
    assert moved == 50


def test_an_unused_choice_keeps_its_probabilities() -> None:
    parents = binary(20, 0.05)
    children = tuple(
        Dimension(f"c{i}", "categorical", "a", choices=("a", "b", "c"), active_if=(f"b{i}", (True,))) for i in range(20)
    )
    optimizer = make("cat_cma", (*parents, *children), seed=1)
    assert isinstance(optimizer, CatCma)
    rng = np.random.default_rng(0)
    idle_seen = used_seen = 0
    for _ in range(15):
        chances = optimizer._strategy._q.copy()
        asked = optimizer.ask(optimizer.population)
        optimizer.tell([observed(g, float(rng.standard_normal())) for g in asked])
        for i in range(20):
            used = any(genome[f"b{i}"] for genome in asked)
            change = np.abs(optimizer._strategy._q[20 + i] - chances[20 + i]).max()
            idle_seen += not used
            used_seen += used and change > 1e-6
            assert used or change < 1e-12
    assert idle_seen > 50
    assert used_seen > 20


def test_a_short_range_next_to_a_longer_one_leaves_its_last_value() -> None:
    """The margin keeps neighbours within reach, even if a mean is beyond a range that the library pads."""
    short = Dimension("short", "int", 3, low=1, high=3)
    dimensions = (short, Dimension("long", "int", 20, low=1, high=40))
    optimizer = make("cat_cma", dimensions, seed=1, population=10, asynchronous=True)
    assert isinstance(optimizer, CatCma)
    optimizer._strategy._mean[0], optimizer._strategy._A[0] = 1.2, 0.01  # of a range of 1: all draws are beyond it
    first = optimizer.ask(10)
    assert {genome["short"] for genome in first} == {3}
    optimizer.tell([observed(genome, 0.0) for genome in first])
    left = [genome["short"] != 3 for genome in optimizer.ask(200)]
    assert np.mean(left) > 0.05, "half of 1 - 0.73 ** (1 / 2) is 0.07"


def test_a_scale_is_learned_from_the_draws_that_include_it() -> None:
    """Half of the draws include a slot; for these the fitness depends on its scale."""
    flag = Dimension("include", "categorical", True, choices=(False, True))
    scale = Dimension("scale", "float", 0.5, active_if=("include", (True,)))
    optimizer = make("cat_cma", (flag, scale, *floats(1)), seed=1)
    told = search(optimizer, lambda g: -abs(float(g["scale"]) - 0.8) if g["include"] else -0.31, 800)
    late = [float(o.genome["scale"]) for o in told[-100:] if o.genome["include"]]
    assert len(late) > 50
    assert np.median(late) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    "dimensions",
    [binary(3), binary(1), (Dimension("k", "int", 2, low=1, high=5),), floats(1), (*binary(2), *floats(2))],
    ids=["choices", "one choice", "whole", "float", "both"],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_cat_cma_works_with_any_kinds_of_dimensions(dimensions: tuple[Dimension, ...], asynchronous: bool) -> None:
    optimizer = make("cat_cma", dimensions, seed=1, asynchronous=asynchronous, population=6)
    told = search(optimizer, lambda genome: sum(float(value) for value in genome.values()), 240)
    best = {d.name: True if d.kind == "categorical" else d.high for d in dimensions}
    last = told[-1].genome
    assert all(abs(float(last[name]) - float(value)) < 0.2 for name, value in best.items()) or any(
        all(abs(float(o.genome[name]) - float(value)) < 0.05 for name, value in best.items()) for o in told[-30:]
    )


def test_cat_cma_stops_when_numbers_have_converged_and_choices_are_made() -> None:
    optimizer = make("cat_cma", (*binary(3), *floats(2)), seed=1)
    told = search(optimizer, lambda g: sum(g[f"b{i}"] for i in range(3)) - (float(g["x0"]) - 0.3) ** 2, 20_000)  # type: ignore[misc]
    assert "cat_cma: converged, to steps of at most" in str(optimizer.stop_reason())
    assert len(told) < 20_000
