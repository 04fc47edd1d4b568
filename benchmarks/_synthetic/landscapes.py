"""Synthetic merge landscapes with a known optimum.

A merge of K parents has K·G weights in [0, 1.5], G for each parent. Each task t has its own best weights w_t: a
component shared by all tasks, plus more of the task's own expert. The ability at a task decreases with the squared
distance from them,

    a_t(w) = top - strength · (w - w_t)ᵀ H (w - w_t) / (K·G)        tr H = K·G

so the best merge is a compromise. H is diagonal (separable) or dense (rotated). The data-flow landscape is in
`routes.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.optimize import minimize
from scipy.stats import ortho_group

from benchmarks._synthetic.routes import Flow, items_of
from benchmarks._synthetic.world import Vector, World
from evosearch.search.baselines import SCALES
from evosearch.search.space.dimensions import Dimension, Estimate, Genome

PARENTS = 4  # also the number of tasks
HIGH = 1.5  # upper bound of the weights
ITEMS = 240  # number of search items, as in `evals/quickstart.yaml`
METHODS = ("task_arithmetic", "ties", "dare_ties")


@dataclass(frozen=True)
class Landscape:
    """One synthetic search.

    Attributes:
        baselines: Name → (fitness on the search items, true accuracy), scored before the search.
        model: Genome → abilities (T,) and place (D,).
        optimum: True accuracy of the best genome in %.
        start: Genome from which the search starts: the best baseline if the encoding allows it.
        slope: Genome → gradient of its fitness, (N,); None if it has none.
    """

    name: str
    dimensions: tuple[Dimension, ...]
    baselines: Mapping[str, tuple[float, float]]
    model: Callable[[Genome], tuple[Vector, Vector]]
    world: World
    optimum: float
    start: Genome
    slope: Callable[[Genome], Vector] | None = None

    def fitness(self, genome: Genome) -> Estimate:
        """Fitness on the search items, as reported to an optimizer."""
        return self.world.fitness(*self.model(genome))

    def test(self, genome: Genome) -> float:
        """True accuracy in %."""
        return self.world.accuracy(*self.model(genome))

    @property
    def baseline(self) -> str:
        """Name of the baseline with the best fitness."""
        return max(self.baselines, key=lambda name: self.baselines[name][0])


def landscape(
    name: str,
    dimensions: tuple[Dimension, ...],
    baselines: Mapping[str, Genome],
    model: Callable[[Genome], tuple[Vector, Vector]],
    world: World,
    optimum: float,
    slope: Callable[[Genome], Vector] | None = None,
) -> Landscape:
    """Create a landscape: score the baselines, and use the best one as the start."""
    scored = {
        name: (world.fitness(*model(genome)).value, world.accuracy(*model(genome)))
        for name, genome in baselines.items()
    }
    made = Landscape(name, dimensions, scored, model, world, optimum, {}, slope)
    return replace(made, start=baselines[made.baseline])


@dataclass(frozen=True)
class Merges:
    """Abilities as a function of the weights w (N,), N = K·G, in the order of the parents."""

    best: Vector  # (T, N) best weights of each task
    curvature: Vector  # (N, N)
    top: float = 0.9
    strength: float = 5.0

    @classmethod
    def draw(cls, rng: np.random.Generator, groups: int, condition: float, rotated: bool) -> "Merges":
        """Draw best weights and curvature.

        Args:
            condition: Ratio of the largest to the smallest curvature.
            rotated: Whether the axes of curvature are rotated instead of parallel to the weights.
        """
        count = PARENTS * groups
        own = np.repeat(np.eye(PARENTS), groups, axis=1)  # (T, N)
        shared = rng.uniform(0.1, 1.0, count)  # for all tasks, some of a parent's layers help more than others
        best = (shared + 0.3 * (own - 1 / PARENTS) + rng.normal(0.0, 0.1, own.shape)).clip(0.0, HIGH)
        eigenvalues = np.exp(rng.permutation(np.linspace(0.0, np.log(condition), count)))
        axes = ortho_group.rvs(count, random_state=rng) if rotated else np.eye(count)
        return cls(best, axes @ np.diag(eigenvalues / eigenvalues.mean()) @ axes.T)

    def abilities(self, weights: Vector) -> Vector:
        """Abilities (T,) at weights (N,)."""
        away = weights - self.best  # (T, N)
        loss = ((away @ self.curvature) * away).sum(1) / weights.size  # (w - w_t)ᵀ H (w - w_t) / (K·G)
        return np.asarray(self.top - self.strength * loss)

    def gradients(self, weights: Vector) -> Vector:
        """Gradients (T, N) of the abilities."""
        return -2.0 * self.strength * (weights - self.best) @ self.curvature / weights.size


def weighted(
    name: str,
    seed: int,
    groups: int,
    condition: float = 30.0,
    rotated: bool = False,
    smooth: bool = True,
    rough: float = 0.0,
    items: int = ITEMS,
) -> Landscape:
    """Landscape with only weights, `groups` for each parent."""
    merges = Merges.draw(np.random.default_rng([seed, 0]), groups, condition, rotated)
    count = PARENTS * groups
    world = World.draw(seed, PARENTS, items, count, smooth=smooth, rough=rough)
    dimensions = weights_of(groups)

    def model(genome: Genome) -> tuple[Vector, Vector]:
        weights = np.array([genome[dimension.name] for dimension in dimensions], dtype=np.float64)
        return merges.abilities(weights), weights - 1 / PARENTS

    def accuracy(weights: Vector) -> float:
        return world.accuracy(merges.abilities(weights), weights - 1 / PARENTS)

    def slope(weights: Vector) -> Vector:
        return world.slope(merges.abilities(weights), weights - 1 / PARENTS, merges.gradients(weights))

    def fitness_slope(genome: Genome) -> Vector:
        weights = np.array([genome[dimension.name] for dimension in dimensions], dtype=np.float64)
        return world.fitness_slope(merges.abilities(weights), weights - 1 / PARENTS, merges.gradients(weights))

    starts, bounds = [merges.best.mean(0), *merges.best, np.full(count, 0.4)], [(0.0, HIGH)] * count
    baselines: dict[str, Genome] = {f"scale:{scale:.2f}": {d.name: scale for d in dimensions} for scale in SCALES}
    optimum = best_of(accuracy, starts, bounds, slope)
    return landscape(name, dimensions, baselines, model, world, optimum, fitness_slope if smooth else None)


def weights_of(groups: int) -> tuple[Dimension, ...]:
    """Dimensions of all weights."""
    return tuple(
        Dimension(f"weight[{parent} {group}]", "float", 0.5, 0.0, HIGH, parameter="weight", scope=f"models[{parent}]")
        for parent in range(PARENTS)
        for group in range(groups)
    )


def mixed(seed: int, groups: int = 2) -> Landscape:
    """Landscape with a merge method, weights, and densities that only some methods use.

    The best weights of a method are g times those of task arithmetic. A method with densities gains a bonus minus
    2 Σ (density - best density)², so it seems worse at first.
    """
    rng = np.random.default_rng([seed, 0])
    merges = Merges.draw(rng, groups, 30.0, rotated=True)
    weights, count = weights_of(groups), PARENTS * groups
    method = Dimension("merge_method", "categorical", METHODS[0], choices=METHODS, parameter="merge_method")
    active = (method.name, METHODS[1:])
    densities = tuple(
        Dimension(f"density[{k}]", "float", 0.5, 0.05, 1.0, active_if=active, parameter="density", scope=f"models[{k}]")
        for k in range(PARENTS)
    )
    gain = {"task_arithmetic": 1.0, "ties": 1.35, "dare_ties": 1.15}
    bonus = {"task_arithmetic": 0.0, "ties": 0.35, "dare_ties": 0.25}
    wanted = {name: rng.uniform(low, low + 0.3, PARENTS) for name, low in zip(METHODS, (0.5, 0.15, 0.5), strict=True)}
    world = World.draw(seed, PARENTS, ITEMS, count + PARENTS + len(METHODS))

    def of(name: str, values: Vector, shares: Vector) -> tuple[Vector, Vector]:
        """Abilities and place of a method, weights (N,) and densities (K,)."""
        kept = shares if name in active[1] else np.full(PARENTS, 0.5)
        lost = 2.0 * float(((kept - wanted[name]) ** 2).sum()) if name in active[1] else 0.0
        which = np.array([float(name == one) for one in METHODS])
        place = np.concatenate([values - 1 / PARENTS, kept - 0.5, which])
        return merges.abilities(values / gain[name]) + bonus[name] - lost, place

    def model(genome: Genome) -> tuple[Vector, Vector]:
        values, shares = (np.array([genome[d.name] for d in found], dtype=np.float64) for found in (weights, densities))
        return of(str(genome[method.name]), values, shares)

    def accuracy(name: str, point: Vector) -> float:
        return world.accuracy(*of(name, point[:count], point[count:]))

    bounds = [(0.0, HIGH)] * count + [(0.05, 1.0)] * PARENTS
    starts = {name: [np.concatenate([gain[name] * merges.best.mean(0), wanted[name]])] for name in METHODS}
    optimum = max(best_of(partial(accuracy, name), starts[name], bounds) for name in METHODS)
    plain = {method.name: METHODS[0]} | {d.name: d.init for d in densities}
    dimensions = (method, *weights, *densities)
    baselines = {f"scale:{scale:.2f}": {d.name: plain.get(d.name, scale) for d in dimensions} for scale in SCALES}
    return landscape("mixed", dimensions, baselines, model, world, optimum)


def few(seed: int) -> Landscape:
    """Landscape with one weight per parent."""
    return weighted("few", seed, groups=1)


def few_shared(seed: int) -> Landscape:
    """`few` with two holes, each for the weight of two parents, because a grid needs few dimensions."""
    return reencoded(
        few(seed),
        tuple(Dimension(name, "float", 0.5, 0.0, HIGH, parameter="weight") for name in ("first two", "last two")),
        lambda genome: [float(genome[name]) for name in ("first two", "first two", "last two", "last two")],
    )


def few_averaged(seed: int) -> Landscape:
    """`few` with uniform averages of a subset of the parents, because greedy_soup needs binary choices."""
    dimensions = tuple(
        Dimension(one.name, "categorical", 1, choices=(0, 1), parameter="weight", scope=one.scope)
        for one in few(seed).dimensions
    )

    def weights(genome: Genome) -> list[float]:
        taken = [float(value) for value in genome.values()]
        return [one / max(1.0, sum(taken)) for one in taken]

    return reencoded(few(seed), dimensions, weights)


def reencoded(
    original: Landscape, dimensions: tuple[Dimension, ...], weights: Callable[[Genome], list[float]]
) -> Landscape:
    """The same landscape with other dimensions, which reach only a subset of it; optimum and baselines are the same.

    Args:
        weights: Genome of the new dimensions → value of each original dimension.
    """

    def model(genome: Genome) -> tuple[Vector, Vector]:
        return original.model(
            {one.name: value for one, value in zip(original.dimensions, weights(genome), strict=True)}
        )

    start = {one.name: one.init for one in dimensions}
    return replace(original, dimensions=dimensions, model=model, start=start, slope=None)


def route(seed: int, encoding: str = "categorical") -> Landscape:
    """Data-flow landscape with two models, see `routes.py`."""
    flow = Flow.draw(np.random.default_rng([seed, 0]), encoding)
    world = items_of(seed, ITEMS)
    optimum = world.accuracy(*flow.model(flow.best()))
    baselines = {"first model": flow.initial}
    return landscape("routing", flow.routes.dimensions, baselines, flow.model, world, optimum)


def best_of(
    accuracy: Callable[[Vector], float],
    starts: list[Vector],
    bounds: list[tuple[float, float]],
    slope: Callable[[Vector], Vector] | None = None,
) -> float:
    """Maximize the accuracy within bounds by L-BFGS-B from every start; without `slope`, gradients are estimated."""
    low, high = np.array(bounds).T
    descent = None if slope is None else (lambda x: -slope(x))
    found = [
        minimize(lambda x: -accuracy(x), start.clip(low, high), jac=descent, method="L-BFGS-B", bounds=bounds)
        for start in starts
    ]
    return max(-float(result.fun) for result in found)


# (landscape, optimizer) → its own encoding of the landscape, and the encoding's label
ENCODINGS: dict[tuple[str, str], tuple[Callable[[int], Landscape], str]] = {
    ("few", "grid"): (few_shared, "two holes"),
    ("few", "greedy_soup"): (few_averaged, "averages"),
}
THRESHOLDS = (partial(route, encoding="threshold"), "thresholds")  # for optimizers without categoricals

# name → (seed → landscape), note printed with the table
LANDSCAPES: dict[str, tuple[Callable[[int], Landscape], str]] = {
    "separable": (
        partial(weighted, "separable", groups=6),
        "24 weights, curvature 30 : 1 along the weights; fitness: log-probability",
    ),
    "rotated": (
        partial(weighted, "rotated", groups=6, condition=1000.0, rotated=True),
        "24 weights, curvature 1000 : 1 across them; fitness: log-probability",
    ),
    "noisy": (
        partial(weighted, "noisy", groups=3, rotated=True, smooth=False, rough=0.15),
        "12 weights, curvature 30 : 1 across them; fitness: right answers, some of which flip with every change",
    ),
    "wide": (
        partial(weighted, "wide", groups=24, condition=100.0),
        "96 weights, curvature 100 : 1 along the weights; fitness: log-probability",
    ),
    "mixed": (mixed, "3 methods, 8 weights, 4 densities that two of the methods take; fitness: log-probability"),
    "routing": (route, "two models of 8 layers, twice: 30 inclusions, 31 scales; fitness: log-probability"),
    "few": (few, "4 weights, one per parent; fitness: log-probability"),
}
