"""What flows between a search space and an optimizer: dimensions, genomes, observations. Plain data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evosearch.evaluation.types import Estimate
from evosearch.recipe.shapes import Scalar

__all__ = ["Dimension", "Estimate", "Genome", "Observation"]

# Dimension name → value, in the order of the dimensions. Every dimension is there: an inactive one holds its `init`.
Genome = dict[str, Scalar]


@dataclass(frozen=True)
class Dimension:
    """One searched value.

    `low` and `high` bound a number, both included; `choices` are a categorical's values. `parameter` and `scope`
    (where in the recipe, as `models[1]`) say what the value sets, where that is one thing. `active_if` names the
    categorical dimension this one depends on and the choices under which it has an effect. `doubt` is the share of
    first draws of a categorical that are to take another choice than `init`; None: all choices are as likely.
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
        """Whether this dimension has an effect, given the genome's categorical values."""
        return self.active_if is None or genome[self.active_if[0]] in self.active_if[1]

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is one of this dimension's."""
        if self.kind == "categorical":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool | str) or (self.kind == "int" and value != int(value)):
            return False
        return self.low <= value <= self.high

    def clip(self, value: Scalar) -> Scalar:
        """The nearest value of this dimension; a categorical value is returned as it is."""
        if self.kind == "categorical":
            return value
        number = min(max(float(value), self.low), self.high)
        return round(number) if self.kind == "int" else number

    def from_unit(self, unit: float) -> Scalar:
        """The value at `unit` in [0, 1]: linear, or linear in the logarithm; integers have bins of equal width."""
        assert self.kind != "categorical"
        low, high = self._edges()
        if self.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        return self.clip(round(value) if self.kind == "int" else value)

    def to_unit(self, value: Scalar) -> float:
        """Where in [0, 1] a value lies: the inverse of `from_unit` (for integers, the middle of their bin)."""
        assert self.kind != "categorical"
        low, high = self._edges()
        number = float(value)
        if self.log:
            return (math.log(number) - math.log(low)) / (math.log(high) - math.log(low))
        return (number - low) / (high - low)

    def _edges(self) -> tuple[float, float]:
        """Bounds of the continuous scale: half a step beyond the outer integers, so that each has the same share."""
        return (self.low - 0.5, self.high + 0.5) if self.kind == "int" else (self.low, self.high)


@dataclass(frozen=True)
class Observation:
    """What an optimizer is told of one asked genome; larger objectives are better.

    `objectives` holds one estimate of a scored candidate, or one of each objective where there are several, and none of
    a failed one; `violations` are amounts by which constraints are broken (0 or less is kept). `fitness` is what the
    record and people compare candidates by, where it is not the one objective.
    """

    ask_id: str
    genome: Genome
    objectives: tuple[Estimate, ...]
    violations: tuple[float, ...] = ()
    state: Literal["scored", "failed"] = "scored"
    fitness: Estimate | None = None

    def __post_init__(self) -> None:
        assert (self.state == "failed") == (not self.objectives), "a scored candidate has objectives, a failed one none"
        assert all(math.isfinite(estimate.value) for estimate in self.objectives), "a fitness that is not finite"

        assert all(math.isfinite(violation) for violation in self.violations), "a violation that is not finite"

    @property
    def value(self) -> float | None:
        """The one objective, or None for a failure: for optimizers that know no other."""
        assert len(self.objectives) <= 1, "several objectives"
        return self.objectives[0].value if self.objectives else None

    @property
    def violation(self) -> float:
        """By how much constraints are broken in all; 0 where every one is kept."""
        return sum(max(0.0, violation) for violation in self.violations)
