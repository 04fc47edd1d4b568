"""What has been asked and not yet told. Shared by the optimizers."""

import math
from collections.abc import Mapping
from typing import Generic, TypeVar

from evosearch.recipe.shapes import Scalar
from evosearch.search.space.types import Genome

RTOL = 1e-9  # other CPU types and library builds ask what differs at about 1e-12

T = TypeVar("T")


def same(one: Mapping[str, Scalar], other: Mapping[str, Scalar]) -> bool:
    """Whether two genomes are one up to rounding."""
    return one.keys() == other.keys() and all(same_value(value, other[name]) for name, value in one.items())


def same_value(one: Scalar, other: Scalar) -> bool:
    """Numbers within a relative 1e-9 (beside zero within 1e-12), anything else equal."""
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return math.isclose(one, other, rel_tol=RTOL, abs_tol=1e-12)
    return type(one) is type(other) and one == other


class Pending(Generic[T]):
    """Asked genomes, each with what the optimizer keeps of it, in ask order."""

    def __init__(self) -> None:
        self._asked: list[tuple[Genome, T]] = []

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, genome: Genome, kept: T) -> None:
        self._asked.append((genome, kept))

    def take(self, genome: Genome) -> T:
        """What was kept of the earliest pending ask of `genome`, which is pending no longer."""
        for alike in (dict.__eq__, same):  # exactly equal, as all but replayed ones are, is found many times faster
            for index, (asked, kept) in enumerate(self._asked):
                if alike(asked, genome):
                    del self._asked[index]
                    return kept
        raise AssertionError("told of a genome that was not asked, or twice of one")
