"""Summaries of holes with many numbers or choices, for tables and tracking; ledger and recipes have all of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from evosearch.recipe.shapes import Scalar
from evosearch.search.titles import dimension_title

MOST = 12  # numbers or choices of a hole that are shown one by one


@dataclass(frozen=True)
class Folded:
    """The numbers of one hole.

    Attributes:
        title: The hole, by the label of its model: `reverse.weight` for `models[0].weight`.
        numbers: How many there are.
        mean: Their mean.
        low: The smallest.
        high: The largest.
    """

    title: str
    numbers: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return `0.62 (0.1 to 1.4) over 57 numbers`."""
        return f"{self.mean:.2g} ({self.low:.2g} to {self.high:.2g}) over {self.numbers} numbers"


def fold(genome: Mapping[str, Scalar], recipe: Mapping[str, Any]) -> dict[str, Scalar | Folded]:
    """Return a genome in which every hole with more than `MOST` numbers is one entry, under the name of the hole.

    Words are counted instead, most frequent first: `sort 14, reverse 10` for the models of 24 layers.

    >>> genome = {f"models[0].weight[layer {n}]": n / 10 for n in range(20)} | {"lambda": 1.0}
    >>> {name: str(value) for name, value in fold(genome, {"models": [{"model": "zoo:tiny/sort"}]}).items()}
    {'models[0].weight': '0.95 (0 to 1.9) over 20 numbers', 'lambda': '1.0'}

    Args:
        genome: Dimension → value.
        recipe: The genome's recipe as plain data, which names the models.
    """
    holes: dict[str, list[float]] = {}
    words: dict[str, Counter[str]] = {}
    for name, value in genome.items():
        if isinstance(value, str):
            words.setdefault(_hole(name), Counter())[value] += 1
        if isinstance(value, int | float) and not isinstance(value, bool):
            holes.setdefault(_hole(name), []).append(float(value))
    found: dict[str, Scalar | Folded] = {}
    for name, value in genome.items():
        hole = _hole(name)
        numbers, counted = holes.get(hole, []), words.get(hole, Counter[str]())
        if counted.total() > MOST:
            found[hole] = ", ".join(f"{word} {count}" for word, count in counted.most_common())
        elif len(numbers) <= MOST:
            found[name] = value
        elif hole not in found:
            found[hole] = Folded(
                dimension_title(hole, recipe), len(numbers), fmean(numbers), min(numbers), max(numbers)
            )
    return found


def _hole(name: str) -> str:
    """Return the name of a dimension's hole, without the key of its number: `w` for `w[layer 3]`."""
    stem, bracket, _ = name.rpartition("[")
    return stem if bracket and name.endswith("]") else name
