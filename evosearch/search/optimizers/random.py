"""Uniform random search, the reference that every other optimizer must beat."""

from collections.abc import Sequence

import numpy as np

from evosearch.recipe.shapes import Scalar
from evosearch.search.optimizer import Problem
from evosearch.search.optimizers.registry import optimizer
from evosearch.search.pending import Pending
from evosearch.search.space.dimensions import Dimension, Genome, Observation


@optimizer("random", population=8, categoricals=True, asynchronous=True, objectives=True)
class Random:
    """Draws every value uniformly over its dimension (log dimensions in the logarithm), after the start."""

    def __init__(self, problem: Problem) -> None:
        self.population = problem.population
        self._dimensions = problem.dimensions
        self._first = [problem.start]
        self._rng = np.random.default_rng(problem.seed)
        self._pending: Pending[None] = Pending()

    def ask(self, n: int) -> list[Genome]:
        """Draw `n` genomes."""
        asked = [self._first.pop(0) if self._first else self._draw() for _ in range(n)]
        for genome in asked:
            self._pending.add(genome, None)
        return [dict(genome) for genome in asked]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Drop the pending genomes; results change nothing."""
        for observation in observations:
            self._pending.take(observation.genome)

    def stop_reason(self) -> str | None:
        """Return None: random search never ends by itself."""
        return None

    def _draw(self) -> Genome:
        """Draw every dimension, active or not, so that draws do not depend on one another."""
        drawn = {dimension.name: self._value(dimension) for dimension in self._dimensions}
        return {
            dimension.name: drawn[dimension.name] if dimension.active(drawn) else dimension.init
            for dimension in self._dimensions
        }

    def _value(self, dimension: Dimension) -> Scalar:
        if dimension.kind == "categorical":
            return dimension.choices[int(self._rng.integers(len(dimension.choices)))]
        return dimension.from_unit(float(self._rng.random()))
