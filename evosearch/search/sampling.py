"""Items that candidates are scored on: the full search split, or its minibatches, one per generation in rotation.

Baselines are scored on the full split, which shows how much easier or harder a minibatch is for them. The optimizer is
told a fitness corrected for this difference:

    reported = f_minibatch + 1/C Σ_c (f_full(c) - f_minibatch(c))        c: the C scored baselines

This makes generations on different minibatches comparable and changes nothing within one. Each objective is corrected
separately. Guards compare points on the same minibatch.

An optimizer that asks for gradients has minibatches of its own (`evaluation.statistics.gradient_steps`), and decides
which candidate is evaluated on which. The fitness of a gradient is told as it is: it only describes a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from evosearch.evaluation.types import ItemBatch, ScoreCard
from evosearch.search import guards
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.objectives import FITNESS, measured
from evosearch.search.protocols import Minibatches
from evosearch.search.records import CandidateRecord, Reported
from evosearch.search.space.dimensions import Evaluation
from evosearch.search.state import SearchState

BACKWARD = 2  # a backward pass counts as two forward passes in a budget of items
Minibatch = int | None  # index; None: the full split


@dataclass
class Sampling:
    """Items of the search split, and the recorded results of candidates on them."""

    full: ItemBatch
    minibatches: Minibatches | None
    ledger: Ledger
    search_id: str
    state: SearchState
    objectives: tuple[str, ...] = ()  # only if there are several
    _cards: dict[tuple[str, int], ScoreCard] = field(default_factory=dict)  # (baseline, minibatch) → card

    def minibatch(self, index: int, generation: int) -> Minibatch:
        """Return the minibatch that a candidate is scored on.

        Args:
            index: Ask index, counted from the optimizer's first.
            generation: Number of candidates that the optimizer proposes together. A generation that a budget cut short
                and a later session completes stays on its minibatch.
        """
        return None if self.minibatches is None else index // generation % len(self.minibatches.batches)

    def batch(self, minibatch: Minibatch) -> ItemBatch:
        """Return the items of a minibatch."""
        return self.full if self.minibatches is None or minibatch is None else self.minibatches.batches[minibatch]

    def cost(self, evaluation: Evaluation) -> int:
        """Return the number of item evaluations that an evaluation counts as."""
        return len(self.batch(evaluation.minibatch)) * (1 + BACKWARD if evaluation.gradient else 1)

    def weights(self, evaluation: Evaluation) -> Mapping[str, float] | None:
        """Return the weights of a gradient job, see `Job`."""
        if not evaluation.gradient:
            return None
        assert self.minibatches is not None
        assert evaluation.minibatch is not None
        return self.minibatches.weights(evaluation.minibatch)

    def is_done(self, candidate: str, minibatch: Minibatch) -> bool:
        """Return whether a candidate is scored, or failed for good."""
        if minibatch is None:
            return (candidate, self.full.split) in self.state.done
        return (candidate, minibatch) in self.state.sampled

    def report(self, candidate: CandidateRecord) -> Reported:
        """Return the result to tell the optimizer for a candidate, from the score card of its original."""
        if candidate.gradient:
            found = self.state.gradients.get((candidate.candidate, candidate.minibatch or 0))
            return Reported(candidate.candidate, found.fitness if found else None, gradient=True)
        return self._report(candidate.candidate, candidate.original, candidate.minibatch)

    def _report(self, candidate: str, original: str, minibatch: Minibatch) -> Reported:
        state = self.state
        card = (
            state.cards.get((original, self.full.split))
            if minibatch is None
            else state.samples.get((original, minibatch))
        )
        if card is None:
            return Reported(candidate, None)
        named = (FITNESS, *self.objectives)
        found = measured(named, card)
        if minibatch is None:
            violations = tuple(state.violations(original, self.full.split).values())
            return Reported(candidate, found[0], violations, found[1:])
        shifts = self._shifts(named, minibatch)
        found = tuple(replace(one, value=one.value + shift) for one, shift in zip(found, shifts, strict=True))
        return Reported(candidate, found[0], self._violations(card.guards, minibatch), found[1:])

    def _violations(self, points: guards.Points, minibatch: int) -> tuple[float, ...]:
        reference = {task: self._card(name, minibatch).guards[task] for task, name in self.state.references().items()}
        return tuple(guards.amounts(self.state.limits, reference, points).values())

    def _shifts(self, named: Sequence[str], minibatch: int) -> list[float]:
        """Return the mean difference of the baselines between full split and minibatch, for each objective."""
        cards = {name: self.state.cards.get((name, self.full.split)) for name in self.state.baselines}
        differences = [
            [
                full.value - own.value
                for full, own in zip(measured(named, card), measured(named, self._card(name, minibatch)), strict=True)
            ]
            for name, card in cards.items()
            if card
        ]
        return [sum(each) / len(each) for each in zip(*differences, strict=True)] or [0.0] * len(named)

    def _card(self, baseline: str, minibatch: int) -> ScoreCard:
        if (baseline, minibatch) not in self._cards:
            assert self.minibatches is not None
            sets = self.state.cards[baseline, self.full.split].sets
            columns = self.ledger.columns(self.search_id, baseline, self.full.split, sets)
            self._cards[baseline, minibatch] = self.minibatches.card(minibatch, columns)
        return self._cards[baseline, minibatch]
