"""Selection of finalists: candidates for `validation`, and the one of them that the gate judges. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from evosearch.search.records import CardSummary, is_candidate
from evosearch.search.state import SearchState

BASELINE_KINDS = ("stage", "uniform", "scale")  # eligible as the best baseline


@dataclass(frozen=True)
class Standing:
    """One candidate or baseline, with its aggregates on each split on which it was scored."""

    candidate: str
    recipe_id: str
    kind: str  # candidate | base | parent | stage | uniform | scale
    scores: Mapping[str, float] = field(default_factory=dict)  # split → score, or fitness where there is no score
    fitness: Mapping[str, float] = field(default_factory=dict)  # split → fitness
    violation: Mapping[str, float] = field(default_factory=dict)  # split → total points by which guards are exceeded
    answer: bool = False  # recommended by the optimizer at the end of the search


def kind_of(candidate: str) -> str:
    """Return `candidate`, or which kind of baseline it is."""
    return "candidate" if is_candidate(candidate) else candidate.partition(":")[0]


def standings(state: SearchState) -> list[Standing]:
    """List all models scored on a full split: baselines first, then candidates in ask order.

    The order does not depend on the order in which workers finished. Duplicates of a recipe, failures, and candidates
    scored only on a minibatch are left out.
    """
    answers = {state.original(name) for name in state.answers.values()}
    cards: dict[str, dict[str, CardSummary]] = {}
    for (name, split), card in state.cards.items():
        cards.setdefault(name, {})[split] = card
    found = [
        Standing(
            candidate=name,
            recipe_id=state.recipe_ids.get(name, ""),
            kind=kind_of(name),
            scores={split: card.merit for split, card in own.items()},
            fitness={split: card.fitness.value for split, card in own.items()},
            violation={split: state.violation(name, split) for split in own},
            answer=name in answers,
        )
        for name, own in cards.items()
    ]
    order = {name: index for index, name in enumerate((*state.baselines, *state.candidates))}
    return sorted(found, key=lambda entry: order.get(entry.candidate, len(order)))  # the champion comes last


def choose(
    entries: Sequence[Standing], count: int, by: Literal["fitness", "score"] = "fitness", split: str = "search"
) -> list[Standing]:
    """Choose the `count` best candidates with distinct recipes, all answers, and the best baseline of `split`.

    A candidate with the same recipe as the best baseline does not count. Candidates are ranked by how far they exceed
    their guards, then by `by`; ties go to the candidate that was proposed first. Answers are chosen whatever their
    rank: the fitness of the best of many candidates is partly luck, that of a mean is not.
    """
    assert count > 0
    baseline = best(entries, split, BASELINE_KINDS)
    chosen: list[Standing] = []
    seen = {baseline.recipe_id} if baseline is not None else set()
    for entry in _ranked([entry for entry in entries if entry.kind == "candidate"], split, by):
        if entry.recipe_id in seen:
            continue
        if len(chosen) < count or entry.answer:
            seen.add(entry.recipe_id)
            chosen.append(entry)
    return chosen + ([baseline] if baseline is not None else [])


def best(entries: Iterable[Standing], split: str, kinds: Sequence[str] = ()) -> Standing | None:
    """Return the best model on `split` among the given kinds (default: all), or None if none was scored on it.

    Models are ranked by how far they exceed their guards, then by score. Ties go to a baseline, which is the simpler
    recipe, then to the candidate that was proposed first.
    """
    ranked = _ranked([entry for entry in entries if not kinds or entry.kind in kinds], split, "score")
    return ranked[0] if ranked else None


def _ranked(entries: Iterable[Standing], split: str, by: str) -> list[Standing]:
    def value(entry: Standing) -> float:
        return (entry.fitness if by == "fitness" else entry.scores).get(split, math.nan)

    known = [entry for entry in entries if not math.isnan(value(entry))]

    def rank(entry: Standing) -> tuple[float, float, bool, int]:
        return entry.violation.get(split, 0.0), -value(entry), entry.kind == "candidate", _ask_index(entry.candidate)

    return sorted(known, key=rank)


def _ask_index(candidate: str) -> int:
    return int(candidate) if is_candidate(candidate) else 0
