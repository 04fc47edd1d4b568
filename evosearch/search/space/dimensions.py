"""Dimensions, genomes, evaluations and observations, the plain data between a search space and an optimizer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evosearch.evaluation.types import Estimate
from evosearch.recipe.shapes import Scalar

__all__ = ["Dimension", "Estimate", "Evaluation", "Genome", "Observation"]

# Dimension name → value, in the order of the dimensions. An inactive dimension has its `init`.
Genome = dict[str, Scalar]


@dataclass(frozen=True)
class Dimension:
    """One searched value.

    Attributes:
        name: Unique name.
        kind: Kind of the values.
        init: Starting value.
        low: Lower bound of numbers.
        high: Upper bound of numbers.
        log: Scale numbers logarithmically.
        choices: Values of a categorical.
        active_if: The categorical dimension that this one depends on, and its choices under which it has an effect.
        parameter: The parameter that the value sets, if it is only one.
        scope: Where in the recipe it is set, such as `models[1]`, if it is only one place.
        doubt: Probability that a first draw of a categorical differs from `init`; None: all choices are equally likely.
    """

    name: str
    kind: Literal["float", "int", "categorical"]
    init: Scalar
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Scalar, ...] = ()
    active_if: tuple[str, tuple[Scalar, ...]] | None = None
    parameter: str | None = None
    scope: str | None = None
    doubt: float | None = None

    def active(self, genome: Mapping[str, Scalar]) -> bool:
        """Return whether this dimension has an effect, given the genome's categorical values."""
        return self.active_if is None or genome[self.active_if[0]] in self.active_if[1]

    def contains(self, value: Scalar) -> bool:
        """Return whether `value` is a value of this dimension."""
        if self.kind == "categorical":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool | str) or (self.kind == "int" and value != int(value)):
            return False
        return self.low <= value <= self.high

    def clip(self, value: Scalar) -> Scalar:
        """Return the nearest value of this dimension; categorical values are unchanged."""
        if self.kind == "categorical":
            return value
        number = min(max(float(value), self.low), self.high)
        return round(number) if self.kind == "int" else number

    def from_unit(self, unit: float) -> Scalar:
        """Return the value at `unit` in [0, 1], on a linear or log scale; integers have bins of equal width."""
        assert self.kind != "categorical"
        low, high = self._edges()
        if self.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        return self.clip(round(value) if self.kind == "int" else value)

    def to_unit(self, value: Scalar) -> float:
        """Return the position of a value in [0, 1], the inverse of `from_unit`; integers are the middle of a bin."""
        assert self.kind != "categorical"
        low, high = self._edges()
        number = float(value)
        if self.log:
            return (math.log(number) - math.log(low)) / (math.log(high) - math.log(low))
        return (number - low) / (high - low)

    def _edges(self) -> tuple[float, float]:
        """Return the bounds of the continuous scale: for integers half a step wider, so that all have equal shares."""
        return (self.low - 0.5, self.high + 0.5) if self.kind == "int" else (self.low, self.high)


@dataclass(frozen=True)
class Evaluation:
    """Kind of evaluation of a proposed genome.

    Attributes:
        minibatch: Index of a minibatch of the search split; None: the full split.
        gradient: Differentiate the fitness in the genome's numbers, instead of scoring items.
    """

    minibatch: int | None = None
    gradient: bool = False


@dataclass(frozen=True)
class Observation:
    """Result of one proposed genome, which the optimizer is told; larger objectives are better.

    Attributes:
        ask_id: Name of the candidate.
        genome: The proposed genome.
        objectives: One estimate per objective of a scored candidate, none of a failed one.
        violations: Amounts by which constraints are broken; 0 or less means kept.
        state: Whether the candidate was scored.
        fitness: The fitness by which candidates are ranked, if it is not the only objective.
        gradient: Dimension → derivative of the fitness in its value, if that was asked for.
    """

    ask_id: str
    genome: Genome
    objectives: tuple[Estimate, ...]
    violations: tuple[float, ...] = ()
    state: Literal["scored", "failed"] = "scored"
    fitness: Estimate | None = None
    gradient: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        assert (self.state == "failed") == (not self.objectives), (
            "scored candidates have objectives, failed ones do not"
        )
        assert all(math.isfinite(estimate.value) for estimate in self.objectives), "an objective that is not finite"
        assert all(math.isfinite(violation) for violation in self.violations), "a violation that is not finite"
        assert all(map(math.isfinite, (self.gradient or {}).values())), "a derivative that is not finite"

    @property
    def value(self) -> float | None:
        """The only objective, None for a failure; for optimizers of one objective."""
        assert len(self.objectives) <= 1, "several objectives"
        return self.objectives[0].value if self.objectives else None

    @property
    def violation(self) -> float:
        """Total amount by which constraints are broken; 0 if all are kept."""
        return sum(max(0.0, violation) for violation in self.violations)
