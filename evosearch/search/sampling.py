"""What candidates are scored on: all of the search split, or a part of it for each generation, in rotation.

Controls are scored on all items. So it is known how much easier or harder a part is for them, and what an optimizer is
told of a part is corrected by that:

    told = f_part + 1/C Σ_c (f_whole(c) - f_part(c))        c the C controls that were scored

which makes generations comparable that were scored on different parts, and changes nothing within one. Each objective
is corrected so, by itself. Guards compare points on the same part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evosearch.evaluation.types import Estimate, ItemBatch, ScoreCard
from evosearch.search import guards
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.objectives import FITNESS, measured
from evosearch.search.protocols import Parts
from evosearch.search.state import SearchState

Part = int | None  # None: all items


@dataclass(frozen=True)
class Told:
    """What an optimizer is told of a scored candidate; `objectives` only where there are several."""

    fitness: Estimate
    violations: tuple[float, ...]
    objectives: tuple[Estimate, ...] = ()


@dataclass
class Sampling:
    """The items of the search split, and what is recorded of a candidate on those that it is scored on."""

    whole: ItemBatch
    parts: Parts | None
    ledger: Ledger
    search_id: str
    state: SearchState
    objectives: tuple[str, ...] = ()  # where there are several
    _cards: dict[tuple[str, int], ScoreCard] = field(default_factory=dict)  # (control, part) → what it has there

    def part(self, index: int, generation: int) -> Part:
        """What a candidate is scored on.

        Args:
            index: of the ask, counted from the optimizer's first.
            generation: how many the optimizer asks together. A generation that a budget cut short, and that a later
                session completes, stays on its part.
        """
        return None if self.parts is None else index // generation % len(self.parts.batches)

    def batch(self, part: Part) -> ItemBatch:
        return self.whole if self.parts is None or part is None else self.parts.batches[part]

    def is_done(self, candidate: str, part: Part) -> bool:
        """Scored, or failed for good."""
        if part is None:
            return (candidate, self.whole.split) in self.state.done
        return (candidate, part) in self.state.sampled

    def told(self, candidate: str, part: Part) -> Told | None:
        """Fitness, violations and objectives as the optimizer is told; None of a failure."""
        state = self.state
        card = state.cards.get((candidate, self.whole.split)) if part is None else state.samples.get((candidate, part))
        if card is None:
            return None
        named = (FITNESS, *self.objectives)
        found = measured(named, card)
        if part is None:
            return Told(found[0], tuple(state.violations(candidate, self.whole.split).values()), found[1:])
        shifts = self._shifts(named, part)
        found = tuple(replace(one, value=one.value + shift) for one, shift in zip(found, shifts, strict=True))
        return Told(found[0], self._violations(card, part), found[1:])

    def _violations(self, card: Mapping[str, Any], part: int) -> tuple[float, ...]:
        held = {task: self._card(name, part).guards[task] for task, name in self.state.references().items()}
        return tuple(guards.amounts(self.state.limits, held, card.get("guards", {})).values())

    def _shifts(self, named: Sequence[str], part: int) -> list[float]:
        """By how much the controls do better on all items than on the part, on average, by each objective."""
        cards = {name: self.state.cards.get((name, self.whole.split)) for name in self.state.controls}
        lost = [
            [
                whole.value - own.value
                for whole, own in zip(
                    measured(named, card), measured(named, self._card(name, part).summary()), strict=True
                )
            ]
            for name, card in cards.items()
            if card
        ]
        return [sum(each) / len(each) for each in zip(*lost, strict=True)]

    def _card(self, control: str, part: int) -> ScoreCard:
        if (control, part) not in self._cards:
            assert self.parts is not None
            sets = self.state.cards[control, self.whole.split]["sets"]
            columns = self.ledger.columns(self.search_id, control, self.whole.split, sets)
            self._cards[control, part] = self.parts.card(part, columns)
        return self._cards[control, part]
