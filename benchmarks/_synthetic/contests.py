"""Searches of the optimizers on synthetic landscapes, and their summary over seeds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks._synthetic.contestants import Contestant, contestants
from benchmarks._synthetic.figures import spread
from benchmarks._synthetic.landscapes import ENCODINGS, LANDSCAPES, THRESHOLDS, Landscape
from evosearch.errors import SpecError
from evosearch.search.optimizer import AsksForGradients, Optimizer, Recommends
from evosearch.search.optimizer_config import create
from evosearch.search.sampling import BACKWARD
from evosearch.search.space.dimensions import Genome, Observation


@dataclass(frozen=True)
class Contest:
    """All contestants on one landscape with one seed, an independent unit of work."""

    landscape: str
    seed: int
    checkpoints: tuple[int, ...]  # numbers of evaluations after which the best candidate so far is tested
    chosen: tuple[str, ...] | None = None  # labels of the contestants; None for all
    slow: bool = False

    def run(self) -> dict[str, Any]:
        """Run every contestant that supports the landscape."""
        made = LANDSCAPES[self.landscape][0](self.seed)
        value, test = made.baselines[made.baseline]
        found: dict[str, Any] = {"landscape": self.landscape, "seed": self.seed, "optimum": made.optimum}
        found |= {"dimensions": len(made.dimensions), "items": made.world.items}
        found["baseline"] = {"name": made.baseline, "search": value, "test": test}
        found["runs"], found["refused"] = {}, {}
        for one in contestants(list(self.chosen) if self.chosen is not None else None):
            make, how = self._encoding(one)
            own = make(self.seed) if make else made
            label = f"{one.label}, {how}" if how else one.label
            upto = one.limit(self.checkpoints[-1], self.slow)
            try:
                found["runs"][label] = search(own, one, self.seed, [n for n in self.checkpoints if n <= upto] or [upto])
            except SpecError as error:
                found["refused"][label] = str(error)
        return found

    def _encoding(self, one: Contestant) -> tuple[Callable[[int], Landscape] | None, str]:
        """The encoding of this landscape for a contestant that needs its own, and the encoding's label."""
        if self.landscape == "routing" and not one.categoricals:
            return THRESHOLDS
        return ENCODINGS.get((self.landscape, one.name), (None, ""))


def search(landscape: Landscape, one: Contestant, seed: int, checkpoints: Sequence[int]) -> dict[str, Any]:
    """Run one search; report the test accuracy of the best candidate at each checkpoint.

    Raises:
        SpecError: The optimizer does not support this landscape.
    """
    optimizer = create(one.config(seed), landscape.dimensions, landscape.start)
    if isinstance(optimizer, AsksForGradients):
        return climb(landscape, optimizer, checkpoints)
    began = time.process_time()
    evaluated: list[tuple[float, Genome]] = []
    scoring, stopped = 0.0, None
    while len(evaluated) < checkpoints[-1]:
        stopped = optimizer.stop_reason()
        if stopped:
            break
        genomes = optimizer.ask(min(optimizer.population, checkpoints[-1] - len(evaluated)))
        at = time.process_time()
        estimates = [landscape.fitness(genome) for genome in genomes]
        scoring += time.process_time() - at
        numbered = enumerate(zip(genomes, estimates, strict=True), start=len(evaluated))
        evaluated += [(estimate.value, genome) for genome, estimate in zip(genomes, estimates, strict=True)]
        optimizer.tell([Observation(str(index), genome, (estimate,)) for index, (genome, estimate) in numbered])
    seconds = time.process_time() - began - scoring
    return {
        "after": {str(count): outcome(landscape, evaluated[:count]) for count in checkpoints},
        "proposed": len(evaluated),
        "distinct": len({tuple(genome.items()) for _, genome in evaluated}),
        "stopped": stopped,
        "ms_per_ask": 1e3 * seconds / max(1, len(evaluated)),
    }


def climb(landscape: Landscape, optimizer: Optimizer, checkpoints: Sequence[int]) -> dict[str, Any]:
    """Run one search by gradient on all items, in which a step counts as three evaluations.

    The winner at a checkpoint is the best of what the optimizer recommends there.

    Raises:
        SpecError: The landscape has no derivative.
    """
    if landscape.slope is None:
        raise SpecError("optimizer", "the fitness of this landscape has no derivative")
    began, spent, scoring = time.process_time(), 0, 0.0
    after: dict[str, dict[str, float]] = {}
    for count in checkpoints:
        while spent + 1 + BACKWARD <= count and optimizer.stop_reason() is None:
            (genome,) = optimizer.ask(1)
            at = time.process_time()
            estimate, slope = landscape.fitness(genome), landscape.slope(genome)
            scoring += time.process_time() - at
            gradient = dict(zip(genome, slope.tolist(), strict=True))
            optimizer.tell([Observation(str(spent), genome, (estimate,), gradient=gradient)])
            spent += 1 + BACKWARD
        assert isinstance(optimizer, Recommends)
        answers = [(landscape.fitness(genome).value, genome) for genome in optimizer.answers()]
        after[str(count)] = outcome(landscape, answers)
    seconds = time.process_time() - began - scoring
    steps = spent // (1 + BACKWARD)
    stopped = optimizer.stop_reason()
    found = {"after": after, "proposed": spent if stopped else checkpoints[-1], "distinct": steps, "stopped": stopped}
    return found | {"ms_per_ask": 1e3 * seconds / max(1, steps)}


def outcome(landscape: Landscape, evaluated: Sequence[tuple[float, Genome]]) -> dict[str, float]:
    """Best fitness among the evaluated genomes, and the true accuracy of that genome in %."""
    value, genome = max(evaluated, key=lambda pair: pair[0])
    return {"search": value, "test": landscape.test(genome)}


def leads(ours: Sequence[float], others: Sequence[float]) -> int:
    """Number of seeds for which ours is better."""
    return sum(own > other for own, other in zip(ours, others, strict=True))


def summary(contests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarize all contests on one landscape: test scores, distance to the optimum, and leads.

    `leads_*` counts the seeds for which a contestant's winner has a higher true accuracy than the baseline or the
    winner of random search.
    """
    found: dict[str, Any] = {
        "seeds": [contest["seed"] for contest in contests],
        "dimensions": contests[0]["dimensions"],
        "items": contests[0]["items"],
        "optimum": spread([contest["optimum"] for contest in contests]),
        "baseline": spread([contest["baseline"]["test"] for contest in contests]),
        "baseline_name": "scale sweep" if contests[0]["baseline"]["name"].startswith("scale:") else "baseline",
        "refused": contests[0]["refused"],
        "contestants": {},
    }
    for label, first in contests[0]["runs"].items():
        runs = [contest["runs"][label] for contest in contests]
        after = {}
        for count in first["after"]:
            tests = [run["after"][count]["test"] for run in runs]
            randoms = [contest["runs"].get("random", {}).get("after", {}).get(count) for contest in contests]
            pairs = zip(contests, tests, strict=True)
            after[count] = {
                "test": spread(tests),
                "below_optimum": spread([contest["optimum"] - test for contest, test in pairs]),
                "leads_baseline": leads(tests, [contest["baseline"]["test"] for contest in contests]),
                "leads_random": leads(tests, [found["test"] for found in randoms]) if all(randoms) else None,
                "item_evaluations": min(int(count), max(run["proposed"] for run in runs)) * contests[0]["items"],
            }
        found["contestants"][label] = {
            "after": after,
            "proposed": spread([run["proposed"] for run in runs]),
            "distinct": spread([run["distinct"] for run in runs]),
            "stopped_early": sum(run["stopped"] is not None for run in runs),
            "ms_per_ask": spread([run["ms_per_ask"] for run in runs]),
        }
    return found
