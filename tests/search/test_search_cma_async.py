"""CMA optimizers in asynchronous mode, with results in any order and batch size."""

from collections.abc import Callable

import numpy as np
import pytest

from evosearch.search.optimizer import Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.space.dimensions import Dimension, Estimate, Genome, Observation

KINDS = ("cma_es", "lra_cma", "cat_cma")
DIMENSIONS = tuple(Dimension(f"x{i}", "float", 0.8, low=-1.0, high=1.0) for i in range(4))
Fitness = Callable[[Genome], float | None]


def make(name: str, **options: object) -> Optimizer:
    config = OptimizerConfig.model_validate({"name": name, "asynchronous": True, **options})
    return create(config, DIMENSIONS, {dimension.name: dimension.init for dimension in DIMENSIONS})


def sphere(genome: Genome) -> float:
    return -sum((float(value) - 0.3) ** 2 for value in genome.values())


def observed(ask: int, genome: Genome, value: float | None) -> Observation:
    if value is None:
        return Observation(str(ask), genome, (), (), "failed")
    return Observation(str(ask), genome, (Estimate(value, 0.1, 10),))


Log = list[tuple[str, list[Observation]]]  # asks and tells in order


def scattered(optimizer: Optimizer, fitness: Fitness, candidates: int, workers: int, seed: int = 0) -> Log:
    """Run `workers` that are always busy and finish in random order."""
    rng = np.random.default_rng(seed)
    log: Log = []
    running: list[Observation] = []
    asked = 0
    while asked < candidates:
        while len(running) < workers:
            (genome,) = optimizer.ask(1)
            running.append(observed(asked, genome, fitness(genome)))
            log.append(("asked", [running[-1]]))
            asked += 1
        ended = [running.pop(int(rng.integers(len(running)))) for _ in range(int(rng.integers(1, 4)))]
        optimizer.tell(ended)
        log.append(("told", ended))
    return log


def asks(log: Log) -> list[Observation]:
    return [observations[0] for kind, observations in log if kind == "asked"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [5, 40])
def test_converges_with_results_in_any_order(kind: str, workers: int) -> None:
    late = asks(scattered(make(kind, seed=1), sphere, 1200, workers))[-60:]
    assert np.median([-o.objectives[0].value for o in late]) < 0.01  # 1.0 at the start


@pytest.mark.parametrize("kind", KINDS)
def test_replays_bit_for_bit(kind: str) -> None:
    log = scattered(make(kind, seed=2), lambda g: None if float(g["x0"]) > 0.75 else sphere(g), 300, 11)
    again = make(kind, seed=2)
    for what, observations in log:
        if what == "asked":
            assert again.ask(1) == [observations[0].genome]
        else:
            again.tell(observations)
    assert len(asks(log)) >= 300


@pytest.mark.parametrize("kind", KINDS)
def test_asks_beyond_a_generation_do_not_depend_on_batch_sizes(kind: str) -> None:
    one, two = make(kind), make(kind)
    size = one.population
    together = one.ask(3 * size)
    assert together == [*two.ask(1), *two.ask(size), *two.ask(2 * size - 1)]
    assert one.population == size
    assert len({tuple(genome.values()) for genome in together}) == 3 * size


@pytest.mark.parametrize("kind", KINDS)
def test_stragglers_block_nothing_and_late_results_are_harmless(kind: str) -> None:
    optimizer = make(kind, seed=3)
    stragglers = optimizer.ask(optimizer.population - 1)
    log = scattered(optimizer, sphere, 1000, 6)
    assert np.median([-o.objectives[0].value for o in asks(log)[-50:]]) < 0.01
    optimizer.tell([observed(0, genome, sphere(genome)) for genome in stragglers])
    late = [-sphere(genome) for genome in optimizer.ask(50)]
    assert np.median(late) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_several_updates_in_one_tell(kind: str) -> None:
    """A budget ends, and all pending results come back without another ask."""
    optimizer = make(kind, seed=1)
    asked = optimizer.ask(5 * optimizer.population + 1)
    optimizer.tell([observed(0, genome, sphere(genome)) for genome in reversed(asked)])
    (genome,) = optimizer.ask(1)
    assert all(-1.0 <= float(value) <= 1.0 for value in genome.values())
    assert optimizer.stop_reason() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [None, 0.25], ids=["all fail", "flat"])
def test_continues_without_any_signal(kind: str, value: float | None) -> None:
    optimizer = make(kind, seed=1)
    log = scattered(optimizer, lambda genome: value, 400, 9)
    assert optimizer.stop_reason() is None
    assert all(-1.0 <= float(x) <= 1.0 for o in asks(log) for x in o.genome.values())


def test_draws_from_before_a_restart_are_ignored() -> None:
    """Two searches whose old draws score differently propose the same after the restart."""
    one, two = (make("cma_es", seed=1, restarts=1, population=4) for _ in range(2))
    for optimizer in (one, two):
        stragglers = optimizer.ask(3)
        for _ in range(3000):
            asked = optimizer.ask(4)
            optimizer.tell([observed(0, genome, sphere(genome)) for genome in asked])
            if optimizer.population == 8:
                break
        assert optimizer.population == 8
        optimizer.tell([observed(0, genome, 1e6 if optimizer is one else -1e6) for genome in stragglers])
    for _ in range(4):
        asked, other = one.ask(8), two.ask(8)
        assert asked == other
        for optimizer in (one, two):
            optimizer.tell([observed(0, genome, sphere(genome)) for genome in asked])
