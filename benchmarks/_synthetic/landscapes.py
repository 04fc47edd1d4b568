"""Synthetic merge landscapes: what a genome is worth, in truth and on the items of one search, and the best there is.

A merge of K parents is K·G weights, G numbers for each parent, in [0, 1.5]. Each task has weights that are best for it
(what is good for all tasks, and more of its own expert) and loses ability with the squared distance from there:

    a_t(w) = top - strength · (w - w_t)ᵀ H (w - w_t)        tr H = K·G

so that the best merge is a compromise. H is diagonal (separable) or not (rotated). `routes.py` has the data-flow kind.
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
from evosearch.search.space.types import Dimension, Estimate, Genome

PARENTS = 4  # and as many tasks
HIGH = 1.5  # weights are searched in [0, HIGH]
ITEMS = 240  # of the search split, as in `evals/quickstart.yaml`
METHODS = ("task_arithmetic", "ties", "dare_ties")


@dataclass(frozen=True)
class Landscape:
    """One synthetic search.

    Attributes:
        baselines: name → fitness on the search items, and accuracy in truth; scored before the search.
        model: genome → abilities (T,) and place (D,).
        optimum: accuracy of the best model there is, in %.
        start: where the search starts: at the best baseline, where it can.
    """

    name: str
    dimensions: tuple[Dimension, ...]
    baselines: Mapping[str, tuple[float, float]]
    model: Callable[[Genome], tuple[Vector, Vector]]
    world: World
    optimum: float
    start: Genome

    def fitness(self, genome: Genome) -> Estimate:
        """On the items of the search: what an optimizer is told."""
        return self.world.fitness(*self.model(genome))

    def test(self, genome: Genome) -> float:
        """Accuracy in truth, in %."""
        return self.world.accuracy(*self.model(genome))

    @property
    def baseline(self) -> str:
        """The best baseline by fitness."""
        return max(self.baselines, key=lambda name: self.baselines[name][0])


def landscape(
    name: str,
    dimensions: tuple[Dimension, ...],
    baselines: Mapping[str, Genome],
    model: Callable[[Genome], tuple[Vector, Vector]],
    world: World,
    optimum: float,
) -> Landscape:
    """A landscape whose baselines are scored, and where a search starts from the best of them."""
    scored = {
        name: (world.fitness(*model(genome)).value, world.accuracy(*model(genome)))
        for name, genome in baselines.items()
    }
    made = Landscape(name, dimensions, scored, model, world, optimum, {})
    return replace(made, start=baselines[made.baseline])


@dataclass(frozen=True)
class Merges:
    """How abilities follow from weights, w (N,) with N = K·G, a parent's numbers side by side."""

    best: Vector  # (T, N) the weights that are best for each task
    curvature: Vector  # (N, N)
    top: float = 0.9
    strength: float = 5.0

    @classmethod
    def draw(cls, rng: np.random.Generator, groups: int, condition: float, rotated: bool) -> "Merges":
        """Args:
        condition: greatest curvature over least.
        rotated: along directions that mix all weights; else along the weights themselves.
        """
        count = PARENTS * groups
        own = np.repeat(np.eye(PARENTS), groups, axis=1)  # (T, N)
        shared = rng.uniform(0.1, 1.0, count)  # for every task: some of a parent's layers are of use, others are not
        best = (shared + 0.3 * (own - 1 / PARENTS) + rng.normal(0.0, 0.1, own.shape)).clip(0.0, HIGH)
        eigenvalues = np.exp(rng.permutation(np.linspace(0.0, np.log(condition), count)))
        axes = ortho_group.rvs(count, random_state=rng) if rotated else np.eye(count)
        return cls(best, axes @ np.diag(eigenvalues / eigenvalues.mean()) @ axes.T)

    def abilities(self, weights: Vector) -> Vector:
        away = weights - self.best  # (T, N)
        return self.top - self.strength * ((away @ self.curvature) * away).sum(1) / weights.size

    def gradients(self, weights: Vector) -> Vector:
        """(T, N) of the abilities."""
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
    """Weights alone, G = `groups` for each parent."""
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

    starts, bounds = [merges.best.mean(0), *merges.best, np.full(count, 0.4)], [(0.0, HIGH)] * count
    baselines = {f"scale:{scale:.2f}": {d.name: scale for d in dimensions} for scale in SCALES}
    return landscape(name, dimensions, baselines, model, world, best_of(accuracy, starts, bounds, slope))


def weights_of(groups: int) -> tuple[Dimension, ...]:
    return tuple(
        Dimension(f"weight[{parent} {group}]", "float", 0.5, 0.0, HIGH, parameter="weight", scope=f"models[{parent}]")
        for parent in range(PARENTS)
        for group in range(groups)
    )


def mixed(seed: int, groups: int = 2) -> Landscape:
    """A method, weights, and densities that some methods take.

    Each method wants its own weights, g times those of task arithmetic. One that drops small changes is better by a
    bonus, less  loss · Σ (density - its best)²,  so that at first sight it may be the worse.
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
        """Of a method, weights (N,) and densities (K,)."""
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
    """One weight a parent."""
    return weighted("few", seed, groups=1)


def few_shared(seed: int) -> Landscape:
    """`few` with two holes, each the weight of two parents: what a grid can take."""
    return seen_through(
        few(seed),
        tuple(Dimension(name, "float", 0.5, 0.0, HIGH, parameter="weight") for name in ("first two", "last two")),
        lambda genome: [float(genome[name]) for name in ("first two", "first two", "last two", "last two")],
    )


def few_averaged(seed: int) -> Landscape:
    """`few` where each parent is in an average or not: what a soup can take."""
    dimensions = tuple(
        Dimension(one.name, "categorical", 1, choices=(0, 1), parameter="weight", scope=one.scope)
        for one in few(seed).dimensions
    )

    def weights(genome: Genome) -> list[float]:
        taken = [float(value) for value in genome.values()]
        return [one / max(1.0, sum(taken)) for one in taken]

    return seen_through(few(seed), dimensions, weights)


def seen_through(
    whole: Landscape, dimensions: tuple[Dimension, ...], weights: Callable[[Genome], list[float]]
) -> Landscape:
    """A part of a landscape, searched by other dimensions; its optimum and baselines are those of the whole.

    Args:
        weights: genome → the value of each dimension of the whole.
    """

    def model(genome: Genome) -> tuple[Vector, Vector]:
        return whole.model({one.name: value for one, value in zip(whole.dimensions, weights(genome), strict=True)})

    return replace(whole, dimensions=dimensions, model=model, start={one.name: one.init for one in dimensions})


def route(seed: int, encoding: str = "categorical") -> Landscape:
    """Which layers of two models, in which order, how strongly: see `routes.py`."""
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
    """The greatest accuracy within bounds, by quasi-Newton from every start; its slope is estimated where not given."""
    low, high = np.array(bounds).T
    against = None if slope is None else (lambda x: -slope(x))
    found = [
        minimize(lambda x: -accuracy(x), start.clip(low, high), jac=against, method="L-BFGS-B", bounds=bounds)
        for start in starts
    ]
    return max(-float(one.fun) for one in found)


# (landscape, optimizer) → how that optimizer searches it, and what it is called then; others take it as it is
ENCODINGS: dict[tuple[str, str], tuple[Callable[[int], Landscape], str]] = {
    ("few", "grid"): (few_shared, "two holes"),
    ("few", "greedy_soup"): (few_averaged, "averages"),
}
THRESHOLDS = (partial(route, encoding="threshold"), "thresholds")  # of routes, without categories: as published

# name → what is made of a seed; the note is printed with the table
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
        "12 weights, curvature 30 : 1 across them; fitness: right answers, some of which change with any change",
    ),
    "wide": (
        partial(weighted, "wide", groups=24, condition=100.0),
        "96 weights, curvature 100 : 1 along the weights; fitness: log-probability",
    ),
    "mixed": (mixed, "3 methods, 8 weights, 4 densities that two of the methods take; fitness: log-probability"),
    "routing": (route, "two models of 8 layers, twice: 30 inclusions, 31 scales; fitness: log-probability"),
    "few": (few, "4 weights, one a parent; fitness: log-probability"),
}
