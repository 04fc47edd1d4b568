"""CMA optimizers beyond the laws: convergence, noise, large spaces, restarts, whole numbers."""

import math
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from evosearch.search.optimizer import Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.optimizers._generations import mean_rate
from evosearch.search.space.dimensions import Dimension, Estimate, Genome, Observation

KINDS = ("cma_es", "lra_cma", "cat_cma")
Fitness = Callable[[Genome], float | None]


def floats(count: int, init: float = 0.9) -> tuple[Dimension, ...]:
    return tuple(Dimension(f"x{i}", "float", init, low=-1.0, high=1.0) for i in range(count))


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


def rotated_ellipsoid(dimensions: int, condition: float = 100.0) -> Fitness:
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))
    weights = condition ** np.linspace(0, 1, dimensions)
    return lambda genome: -float(weights @ (axes @ (np.array([*genome.values()], dtype=float) - 0.3)) ** 2)


def separable_ellipsoid(dimensions: int, condition: float = 1e4) -> Fitness:
    weights = condition ** np.linspace(0, 1, dimensions)
    return lambda genome: -float(weights @ (np.array([*genome.values()], dtype=float) - 0.3) ** 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("landscape", [separable_ellipsoid, rotated_ellipsoid])
def test_converges_on_ellipsoids(kind: str, landscape: Callable[[int, float], Fitness]) -> None:
    fitness = landscape(6, 100.0)
    told = search(make(kind, floats(6), seed=1), fitness, 3000)
    start = fitness({f"x{i}": 0.9 for i in range(6)})
    assert start is not None
    assert max(o.objectives[0].value for o in told) > 1e-4 * start
    assert min(float(value) for o in told for value in o.genome.values()) >= -1.0


def test_lra_cma_is_robust_to_noise() -> None:
    """If noise hides the last tenth of the range, it gets nearer to the optimum than plain CMA-ES."""
    errors: dict[str, list[float]] = {"cma_es": [], "lra_cma": []}
    for seed in range(3):
        for kind, found in errors.items():
            rng = np.random.default_rng(seed)
            noisy = lambda genome: -sum((float(x) - 0.3) ** 2 for x in genome.values()) + 0.1 * rng.standard_normal()  # noqa: E731, B023
            told = search(make(kind, floats(3), seed=seed), noisy, 1500)
            late = np.array([[float(x) for x in o.genome.values()] for o in told[-100:]]).mean(axis=0)
            found.append(float(((late - 0.3) ** 2).sum()))
    assert np.median(errors["lra_cma"]) < np.median(errors["cma_es"])
    assert np.median(errors["lra_cma"]) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_stays_finite_after_convergence(kind: str) -> None:
    optimizer = make(kind, floats(2), seed=1)
    for _ in range(700):
        asked = optimizer.ask(optimizer.population)
        optimizer.tell([observed(genome, -sum((float(x) - 0.3) ** 2 for x in genome.values())) for genome in asked])
        assert all(math.isfinite(float(x)) for genome in asked for x in genome.values())
    assert str(optimizer.stop_reason()).startswith(f"{kind}: ")


@pytest.mark.parametrize(
    ("kind", "options", "generations"), [("cma_es", {"diagonal": True}, 20), ("lra_cma", {}, 1), ("cat_cma", {}, 1)]
)
def test_asks_and_learns_in_300_dimensions_with_flat_memory(
    kind: str, options: dict[str, object], generations: int
) -> None:
    optimizer = make(kind, floats(300, 0.5), seed=1, **options)
    fitness = lambda genome: -sum((float(x) - 0.3) ** 2 for x in genome.values())  # noqa: E731
    assert optimizer.population == 21
    search(optimizer, fitness, 21)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(generations):
        search(optimizer, fitness, 21)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 2_000_000  # bytes: two (300, 300) matrices, not one per candidate
    assert optimizer.stop_reason() is None


def test_diagonal_learns_scales_sooner_where_axes_matter_one_by_one() -> None:
    fitness = separable_ellipsoid(30)
    full, diagonal = (search(make("cma_es", floats(30), seed=2, diagonal=d), fitness, 1500) for d in (False, True))
    best = [max(o.objectives[0].value for o in told) for told in (full, diagonal)]
    assert best[1] > best[0] / 3 > best[0]


def test_restarts_double_the_population_and_end_with_a_reason() -> None:
    """IPOP: when the criterion stops, restart with twice the population, as often as configured."""
    fitness = lambda genome: -sum((float(x) - 0.3) ** 2 for x in genome.values())  # noqa: E731
    optimizer, again = (make("cma_es", floats(2), seed=3, restarts=2, population=4) for _ in range(2))
    sizes: list[int] = []
    firsts: list[np.ndarray] = []
    for _ in range(2000):
        size = optimizer.population
        asked = optimizer.ask(size)
        assert again.ask(size) == asked
        if [size] != sizes[-1:]:
            sizes.append(size)
            firsts.append(np.array([[float(x) for x in genome.values()] for genome in asked]).mean(axis=0))
        for one in (optimizer, again):
            one.tell([observed(genome, fitness(genome)) for genome in asked])
        if optimizer.stop_reason():
            break
    assert sizes == [4, 8, 16]
    assert str(optimizer.stop_reason()).startswith("cma_es: tol")
    assert np.linalg.norm(firsts[1] - 0.3) > 0.1, "not where the first run ended"
    assert np.linalg.norm(firsts[1] - firsts[2]) > 0.1, "a start of its own each time"


def test_without_restarts_nothing_is_drawn_for_them() -> None:
    one, two = make("cma_es", floats(3), seed=5), make("cma_es", floats(3), seed=5, restarts=3)
    assert [o.genome for o in search(one, rotated_ellipsoid(3), 200)] == [
        o.genome for o in search(two, rotated_ellipsoid(3), 200)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_reach_and_leave_both_ends(kind: str) -> None:
    dimensions = (
        Dimension("short", "int", 2, low=1, high=3),
        Dimension("long", "int", 5, low=1, high=40),
        Dimension("log", "int", 10, low=1, high=100, log=True),
        Dimension("huge", "int", 5, low=0, high=100_000),
        Dimension("weight", "float", 0.5),
    )
    for sign in (1.0, -1.0):
        up = lambda g: sign * (g["short"] / 3 + g["long"] / 40 + math.log(g["log"]) / 5 + g["huge"] / 1e5)  # noqa: E731, B023
        optimizer = make(kind, dimensions, seed=1, population=10)
        first = search(optimizer, up, 600)
        ends = (3, 40) if sign > 0 else (1, 1)
        assert (first[-1].genome["short"], first[-1].genome["long"]) == ends or any(
            (o.genome["short"], o.genome["long"]) == ends for o in first[-20:]
        )
        back = search(optimizer, lambda g: -up(g), 1500)  # noqa: B023
        values = {o.genome["short"] for o in back[-300:]}
        assert (1 if sign > 0 else 3) in values, "the margin keeps every value within reach"


@pytest.mark.parametrize(("lags", "rate"), [([0, 0, 0], 1.0), ([1, 1], 0.5), ([0, 6], 0.25)])
def test_old_draws_move_the_mean_less(lags: list[int], rate: float) -> None:
    assert mean_rate(lags) == rate
