"""one_plus_lambda: a (1+λ) evolution strategy with one step size."""

from collections.abc import Sequence

import numpy as np

from evosearch.search.optimizer import Problem
from evosearch.search.optimizers.registry import Option, optimizer
from evosearch.search.pending import Pending
from evosearch.search.space.dimensions import Genome, Observation

Rank = tuple[bool, float, float]  # (scored, -violation, value): larger is better


@optimizer(
    "one_plus_lambda",
    population=8,
    options={
        "step": Option(float, 0.2, "First step size, as a fraction of each dimension's range.", gt=0, le=1),
        "elite": Option(int, 1, "Number of best candidates that parents are drawn from.", ge=1, le=100),
    },
)
class OnePlusLambda:
    """Mutates one of the best candidates so far; the step size follows the share of mutations that improve on it."""

    def __init__(self, problem: Problem, *, step: float, elite: int) -> None:
        self._problem, self._step, self._elite = problem, step, elite
        self._rng = np.random.default_rng(problem.seed)
        self._pending: Pending[None] = Pending()
        self._generation: list[tuple[Rank, Genome]] = []
        self._best: list[tuple[Rank, Genome]] = []
        self._asked = 0

    @property
    def population(self) -> int:
        """The size of a generation, or the rest of one."""
        return self._problem.population - self._asked % self._problem.population

    def ask(self, n: int) -> list[Genome]:
        """Propose the start, then mutations."""
        genomes = [self._mutation() if self._asked + index else dict(self._problem.start) for index in range(n)]
        self._asked += n
        for genome in genomes:
            self._pending.add(genome, None)
        return [dict(genome) for genome in genomes]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Keep the best, and adapt the step size after each generation."""
        for one in observations:
            self._pending.take(one.genome)
            value = one.value if one.value is not None else 0.0
            rank = (one.state == "scored", -one.violation, value if one.violation == 0 else 0.0)
            self._generation.append((rank, dict(one.genome)))
        if len(self._generation) >= self._problem.population:
            self._learn()

    def stop_reason(self) -> str | None:
        """Say when steps are too small to change anything."""
        return "one_plus_lambda: converged" if self._step < 1e-9 else None

    def _learn(self) -> None:
        if self._best:
            better = sum(rank > self._best[0][0] for rank, _ in self._generation) / len(self._generation)
            self._step = min(0.3, max(1e-3, self._step * (1.3 if better > 0.2 else 0.75)))
        self._best = sorted([*self._best, *self._generation], key=lambda pair: pair[0], reverse=True)[: self._elite]
        self._generation = []

    def _mutation(self) -> Genome:
        parents = [genome for _, genome in self._best] or [self._problem.start]
        parent = parents[int(self._rng.integers(len(parents)))]
        units = {d.name: d.to_unit(parent[d.name]) for d in self._problem.dimensions}
        steps = self._step * self._rng.standard_normal(len(units))
        moved = dict(zip(units, np.clip(np.array(list(units.values())) + steps, 0.0, 1.0).tolist(), strict=True))
        return {d.name: d.from_unit(moved[d.name]) for d in self._problem.dimensions}
