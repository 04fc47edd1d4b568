"""Protocols of optimizers, and the problem that one is built for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from evosearch.search.space.dimensions import Dimension, Evaluation, Genome, Observation


class Optimizer(Protocol):
    """Proposes genomes and learns from their results.

    Deterministic in (seed, history of asks and tells), with a random generator of its own. `ask(n)` returns what `n`
    single asks would return, so that a search can be replayed in any portions. An optimizer in asynchronous mode can be
    asked at any time and told of any pending genomes in any order.
    """

    @property
    def population(self) -> int:
        """Number of candidates to propose together next: a generation, or the rest of one that a budget cut short."""

    def ask(self, n: int) -> list[Genome]:
        """Propose the next `n` genomes, within bounds; they are pending until told."""

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn from the results of pending genomes, in ask order.

        A genome that keeps its constraints (`Observation.violation` is 0) is better than any that breaks one; of two
        that break some, the one with the smaller violation is better; a failure is worse than all others (Deb 2000,
        doi:10.1016/S0045-7825(99)00389-8).
        """

    def stop_reason(self) -> str | None:
        """Return why more candidates would be useless, or None."""


@runtime_checkable
class Recommends(Protocol):
    """An optimizer that recommends genomes at the end of a search, such as the mean of its distribution."""

    def answers(self) -> list[Genome]:
        """Return the recommended genomes, within bounds; they are scored on the full search split, and never told."""


@runtime_checkable
class AsksForGradients(Protocol):
    """An optimizer that is registered with `gradients`, and decides how each of its candidates is evaluated."""

    def evaluation(self, index: int) -> Evaluation:
        """Return how the candidate with an ask index (from 0) is evaluated; depends on nothing else.

        A gradient is asked for on shard s of minibatch i, which has index i · population + s. Candidates are scored
        on what models are compared on: the held-back part, or else the full search split.
        """


@dataclass(frozen=True)
class Problem:
    """The problem that an optimizer is built for.

    Attributes:
        dimensions: The search space.
        start: Genome on which a distribution is centred, or which an optimizer without one proposes first.
        population: Number of candidates that are proposed together.
        seed: Seed of the optimizer's random generator.
        asynchronous: The optimizer is asked and told at any time, instead of generation by generation.
        objectives: Number of values of an observation.
        known: Results of another search in this space's dimensions, best first, for optimizers that learn from single
            trials. They were never proposed here and are not counted.
        minibatches: For gradients: number of minibatches of the search split, each of which has `population` shards.
        held_back: For gradients: whether a part of the search split is in no minibatch; models are compared on it.
    """

    dimensions: tuple[Dimension, ...]
    start: Genome
    population: int
    seed: int = 0
    asynchronous: bool = False
    objectives: int = 1
    known: tuple[Observation, ...] = ()
    minibatches: int = 1
    held_back: bool = False
