"""Objectives of a search that has several. Pure, on recorded data; larger is better.

| objective | value |
|---|---|
| fitness | the suite's fitness |
| score | the suite's score, in points |
| a task | its share of the fitness; a guarded-only task has its points |
| hops | minus the number of hops of a route |
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from evosearch.evaluation.types import Estimate

FITNESS, SCORE, HOPS = "fitness", "score", "hops"
NAMES = (FITNESS, SCORE, HOPS)  # in addition to tasks


class Scored(Protocol):
    """A score card or its recorded summary."""

    @property
    def score(self) -> float | None:
        """Score in points; None if no right answers were read."""

    @property
    def score_stderr(self) -> float:
        """Standard error of the score."""

    @property
    def fitness(self) -> Estimate:
        """The suite's fitness."""

    @property
    def task_fitness(self) -> Mapping[str, Estimate]:
        """Task → its share of the fitness, or its points."""


def measured(names: Sequence[str], card: Scored) -> tuple[Estimate, ...]:
    """Return the value of each objective on a card, in order; 0 for `hops`, which a card does not know."""
    return tuple(_measured(name, card) for name in names)


def with_hops(names: Sequence[str], found: Sequence[Estimate], recipe: Mapping[str, Any]) -> tuple[Estimate, ...]:
    """Fill in `hops` with the length of the scored route."""
    hops = len((recipe.get("routing") or {}).get("hops", ()))
    return tuple(
        Estimate(-float(hops), 0.0, one.n) if name == HOPS else one for name, one in zip(names, found, strict=True)
    )


def _measured(name: str, card: Scored) -> Estimate:
    if name == FITNESS:
        return card.fitness
    if name == SCORE:
        assert card.score is not None, "checked with the spec"
        return Estimate(card.score, card.score_stderr, card.fitness.n)
    if name == HOPS:
        return Estimate(0.0, 0.0, card.fitness.n)
    return card.task_fitness[name]
