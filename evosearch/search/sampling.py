"""What candidates are scored on: all of the search split, or a minibatch of it for each generation, in rotation.

Baselines are scored on all items. So it is known how much easier or harder a minibatch is for them, and what an optimizer is
told of a minibatch is corrected by that:

    told = f_minibatch + 1/C Σ_c (f_whole(c) - f_minibatch(c))        c the C baselines that were scored

which makes generations comparable that were scored on different minibatches, and changes nothing within one. Each objective
is corrected so, by itself. Guards compare points on the same minibatch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from evosearch.evaluation.types import ItemBatch, ScoreCard
from evosearch.search import guards
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.objectives import FITNESS, measured
from evosearch.search.protocols import Minibatches
from evosearch.search.records import Reported
from evosearch.search.state import SearchState

Minibatch = int | None  # None: all items


@dataclass
class Sampling:
    """The items of the search split, and what is recorded of a candidate on those that it is scored on."""

    whole: ItemBatch
    minibatches: Minibatches | None
    ledger: Ledger
    search_id: str
    state: SearchState
    objectives: tuple[str, ...] = ()  # where there are several
    _cards: dict[tuple[str, int], ScoreCard] = field(default_factory=dict)  # (baseline, minibatch) → what it has there

    def minibatch(self, index: int, generation: int) -> Minibatch:
        """What a candidate is scored on.

        Args:
            index: of the ask, counted from the optimizer's first.
            generation: how many the optimizer asks together. A generation that a budget cut short, and that a later
                session completes, stays on its minibatch.
        """
        return None if self.minibatches is None else index // generation % len(self.minibatches.batches)

    def batch(self, minibatch: Minibatch) -> ItemBatch:
        return self.whole if self.minibatches is None or minibatch is None else self.minibatches.batches[minibatch]

    def is_done(self, candidate: str, minibatch: Minibatch) -> bool:
        """Scored, or failed for good."""
        if minibatch is None:
            return (candidate, self.whole.split) in self.state.done
        return (candidate, minibatch) in self.state.sampled

    def report(self, candidate: str, original: str, minibatch: Minibatch) -> Reported:
        """Return what the optimizer is told of a candidate, from the score card of `original`."""
        state = self.state
        card = (
            state.cards.get((original, self.whole.split))
            if minibatch is None
            else state.samples.get((original, minibatch))
        )
        if card is None:
            return Reported(candidate, None)
        named = (FITNESS, *self.objectives)
        found = measured(named, card)
        if minibatch is None:
            violations = tuple(state.violations(original, self.whole.split).values())
            return Reported(candidate, found[0], violations, found[1:])
        shifts = self._shifts(named, minibatch)
        found = tuple(replace(one, value=one.value + shift) for one, shift in zip(found, shifts, strict=True))
        return Reported(candidate, found[0], self._violations(card.guards, minibatch), found[1:])

    def _violations(self, points: guards.Points, minibatch: int) -> tuple[float, ...]:
        held = {task: self._card(name, minibatch).guards[task] for task, name in self.state.references().items()}
        return tuple(guards.amounts(self.state.limits, held, points).values())

    def _shifts(self, named: Sequence[str], minibatch: int) -> list[float]:
        """By how much the baselines do better on all items than on the minibatch, on average, by each objective."""
        cards = {name: self.state.cards.get((name, self.whole.split)) for name in self.state.baselines}
        lost = [
            [
                whole.value - own.value
                for whole, own in zip(measured(named, card), measured(named, self._card(name, minibatch)), strict=True)
            ]
            for name, card in cards.items()
            if card
        ]
        return [sum(each) / len(each) for each in zip(*lost, strict=True)]

    def _card(self, baseline: str, minibatch: int) -> ScoreCard:
        if (baseline, minibatch) not in self._cards:
            assert self.minibatches is not None
            sets = self.state.cards[baseline, self.whole.split].sets
            columns = self.ledger.columns(self.search_id, baseline, self.whole.split, sets)
            self._cards[baseline, minibatch] = self.minibatches.card(minibatch, columns)
        return self._cards[baseline, minibatch]
