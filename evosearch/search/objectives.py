"""What a candidate is told of where there are several things to be good at. Pure, on recorded data; larger is better.

| objective | what it is |
|---|---|
| fitness | the suite's fitness |
| score | the suite's score, in points |
| a task | its part of the fitness (the item mean of log-probabilities, or points); points of one that is only guarded |
| hops | minus the hops of a route |
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from evosearch.evaluation.types import Estimate

FITNESS, SCORE, HOPS = "fitness", "score", "hops"
NAMES = (FITNESS, SCORE, HOPS)  # beside tasks


class Scored(Protocol):
    """A score card or its recorded summary."""

    @property
    def score(self) -> float: ...

    @property
    def score_stderr(self) -> float: ...

    @property
    def fitness(self) -> Estimate: ...

    @property
    def task_fitness(self) -> Mapping[str, Estimate]: ...


def measured(names: Sequence[str], card: Scored) -> tuple[Estimate, ...]:
    """What a card says of each objective, in their order; of `hops`, of which it knows nothing, 0."""
    return tuple(_measured(name, card) for name in names)


def with_hops(names: Sequence[str], found: Sequence[Estimate], recipe: Mapping[str, Any]) -> tuple[Estimate, ...]:
    """The same, with the length of the route that was scored."""
    hops = len((recipe.get("routing") or {}).get("hops", ()))
    return tuple(
        Estimate(-float(hops), 0.0, one.n) if name == HOPS else one for name, one in zip(names, found, strict=True)
    )


def _measured(name: str, card: Scored) -> Estimate:
    if name == FITNESS:
        return card.fitness
    if name == SCORE:
        return Estimate(card.score, card.score_stderr, card.fitness.n)
    if name == HOPS:
        return Estimate(0.0, 0.0, card.fitness.n)
    return card.task_fitness[name]
