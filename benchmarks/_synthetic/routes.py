"""Synthetic data-flow landscape on the real slots and routes (`evosearch.search.space.routes`).

The ability of a route is the sum of its hops' values minus the cost of its jumps:

    a = a₀ + Σ_k u(model, layer) - κ (ln s_k - m(model, layer))² - jump(hop k-1 → hop k)

A hop to the next layer of the same model is free; each skipped or repeated layer has a cost, and so has a change of
models. Most changes to the first model's own forward pass are therefore harmful, and some help. Hops follow the order
of the slots, so dynamic programming over (slot, hops so far) finds the best route; the best scale of a hop is exp(m).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from benchmarks._synthetic.world import Vector, World
from evosearch.recipe.hops import Hop
from evosearch.search.space.dimensions import Genome
from evosearch.search.space.routes import Routes

MODELS = ("first", "second")
LAYERS, REPEATS, MAX_HOPS = 8, 2, 14
SITES = tuple((model, layer) for model in MODELS for layer in range(LAYERS))
# Slots of a route in order, as (name in a genome, model, layer); the first and the last slot are always used
SLOTS: tuple[tuple[str, str, int], ...] = (
    *((f"{repeat} {model}:{layer}", model, layer) for repeat in range(1, REPEATS + 1) for model, layer in SITES),
    (f"end {MODELS[0]}:{LAYERS - 1}", MODELS[0], LAYERS - 1),
)
OFFSETS = np.array([-0.5, 0.0, 0.5])  # added to the ability on each of three tasks
AT_START = -0.2  # ability of the first model alone
KAPPA = 3.0
Site = tuple[str, int]  # (model, layer)


@dataclass(frozen=True)
class Flow:
    """Abilities of routes for one draw of u and m."""

    routes: Routes
    worth: dict[Site, float]  # u
    scale: dict[Site, float]  # m, of ln s

    @classmethod
    def draw(cls, rng: np.random.Generator, encoding: str) -> "Flow":
        """Draw u and m; `encoding` is the encoding of the routing hole."""
        hole = {"search": True, "models": list(MODELS), "repeats": REPEATS, "max_hops": MAX_HOPS, "encoding": encoding}
        routes = Routes.from_template({"routing": hole}, dict.fromkeys(MODELS, LAYERS), "routing landscape")
        worth = {site: float(rng.normal(0.0, 0.16)) for site in SITES}
        return cls(routes, worth, {site: float(rng.uniform(-0.15, 0.15)) for site in SITES})

    @cached_property
    def initial(self) -> Genome:
        """The first model's own forward pass."""
        return {dimension.name: dimension.init for dimension in self.routes.dimensions}

    def model(self, genome: Genome) -> tuple[Vector, Vector]:
        """Abilities (T,) and place: for each layer, ±1 for whether it is used and for whether it is used twice."""
        hops = self.routes.fill(genome).hops
        place, seen = -np.ones(2 * len(SITES)), set[Site]()
        for hop in hops:
            site = (hop.model, hop.layer)
            place[SITES.index(site) + (len(SITES) if site in seen else 0)] = 1.0
            seen.add(site)
        return AT_START + self._sum(hops) - self._first + OFFSETS, place

    @cached_property
    def _first(self) -> float:
        return self._sum(self.routes.fill(self.initial).hops)

    def _sum(self, hops: tuple[Hop, ...]) -> float:
        sites = [(hop.model, hop.layer) for hop in hops]
        worth = sum(self.worth[site] for site in sites)
        jumps = sum(jump(*pair) for pair in pairwise(sites))
        later = zip(sites[1:], hops[1:], strict=True)  # the input of the first hop is not scaled
        return worth - jumps - KAPPA * sum((float(np.log(hop.scale)) - self.scale[site]) ** 2 for site, hop in later)

    def best(self) -> Genome:
        """The optimal genome, by dynamic programming."""
        # most[s][k]: best sum of a route that reaches slot s with hop k, and the slot of hop k-1
        most: list[dict[int, tuple[float, int]]] = [{1: (self.worth[SLOTS[0][1:]], -1)}]
        for at, (_, model, layer) in enumerate(SLOTS[1:], start=1):
            to = (model, layer)
            found: dict[int, tuple[float, int]] = {}
            for before in range(at):
                step = self.worth[to] - jump(SLOTS[before][1:], to)
                for hops, (value, _) in most[before].items():
                    if hops < MAX_HOPS and value + step > found.get(hops + 1, (-np.inf, 0))[0]:
                        found[hops + 1] = (value + step, before)
            most.append(found)
        taken, at = set[str](), len(SLOTS) - 1
        hops = max(most[at], key=lambda count: most[at][count][0])
        while at >= 0:
            taken.add(SLOTS[at][0])
            at, hops = most[at][hops][1], hops - 1
        return self._genome(taken)

    def _genome(self, taken: set[str]) -> Genome:
        sites = {name: (model, layer) for name, model, layer in SLOTS}
        genome: Genome = {}
        for dimension in self.routes.dimensions:
            slot = dimension.name.partition("[")[2].removesuffix("]")
            if dimension.parameter == "include":
                genome[dimension.name] = slot in taken if dimension.choices else float(slot in taken)
            else:
                genome[dimension.name] = float(np.exp(self.scale[sites[slot]])) if slot in taken else dimension.init
        return genome


def jump(before: Site, after: Site) -> float:
    """Cost of a jump from one layer to another."""
    missed = abs(after[1] - before[1] - 1)
    return 0.1 * min(missed, 5) + 0.1 * (before[0] != after[0])


def items_of(seed: int, items: int) -> World:
    """Search items for routes."""
    return World.draw(seed, len(OFFSETS), items, 2 * len(SITES))
