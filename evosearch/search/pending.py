"""Pending genomes of an optimizer, and comparison of genomes up to rounding."""

import math
from collections.abc import Mapping
from typing import Generic, TypeVar

from evosearch.recipe.shapes import Scalar
from evosearch.search.space.dimensions import Genome

RTOL = 1e-9  # asks on other CPU types and library builds differ by about 1e-12

T = TypeVar("T")


def same(one: Mapping[str, Scalar], other: Mapping[str, Scalar]) -> bool:
    """Return whether two genomes are equal up to rounding."""
    return one.keys() == other.keys() and all(same_value(value, other[name]) for name, value in one.items())


def same_value(one: Scalar, other: Scalar) -> bool:
    """Return whether two numbers agree within a relative 1e-9 (near zero within 1e-12), or other values are equal."""
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return math.isclose(one, other, rel_tol=RTOL, abs_tol=1e-12)
    return type(one) is type(other) and one == other


class Pending(Generic[T]):
    """Pending genomes in ask order, each with data that the optimizer keeps about it."""

    def __init__(self) -> None:
        self._asked: list[tuple[Genome, T]] = []

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, genome: Genome, kept: T) -> None:
        """Append a genome."""
        self._asked.append((genome, kept))

    def take(self, genome: Genome) -> T:
        """Remove the earliest pending ask of `genome` and return what was kept about it."""
        for alike in (dict.__eq__, same):  # exact equality, which suffices except in replay, is many times faster
            for index, (asked, kept) in enumerate(self._asked):
                if alike(asked, genome):
                    del self._asked[index]
                    return kept
        raise AssertionError("tell: this genome is not pending; it was never asked, or was told before")
