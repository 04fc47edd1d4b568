"""Who goes on: candidates from `search` to `validation`, and from there the one that the gate judges. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evosearch.search.ledger.events import Event

BASELINE_KINDS = ("stage", "uniform", "scale")  # what "best baseline" is chosen from


@dataclass(frozen=True)
class Standing:
    """One candidate or baseline, with its aggregates on each split it was scored on."""

    candidate: str
    recipe_id: str
    kind: str  # candidate | base | parent | stage | uniform | scale
    scores: Mapping[str, float] = field(default_factory=dict)  # split → score
    fitness: Mapping[str, float] = field(default_factory=dict)  # split → fitness
    broken: Mapping[str, float] = field(default_factory=dict)  # split → points by which guards are broken, in all


def kind_of(candidate: str) -> str:
    """`candidate` for an asked one, else which baseline it is."""
    return "candidate" if candidate.isdigit() else candidate.partition(":")[0]


def standings(events: Iterable[Event]) -> list[Standing]:
    """Everything that was scored on all items of a split, in recorded order.

    Duplicates of a recipe, failures, and candidates scored on a minibatch of the search split alone have no standing.
    """
    cards: dict[str, dict[str, Any]] = {}
    recipe_ids: dict[str, str] = {}
    for event in events:
        payload = event.payload
        if event.type in ("asked", "baseline") and payload.get("recipe_id"):
            recipe_ids[payload["candidate"]] = payload["recipe_id"]
        elif event.type == "scored" and payload.get("minibatch") is None:
            cards.setdefault(payload["candidate"], {})[payload["split"]] = payload
    return [
        Standing(
            candidate,
            recipe_ids.get(candidate, ""),
            kind_of(candidate),
            {split: float(card["score"]) for split, card in by_split.items()},
            {split: float(card["fitness"]["value"]) for split, card in by_split.items()},
        )
        for candidate, by_split in cards.items()
    ]


def choose(
    entries: Sequence[Standing], count: int, by: Literal["fitness", "score"] = "fitness", split: str = "search"
) -> list[Standing]:
    """The finalists: the `count` best candidates with distinct recipes, and the best baseline of `split` besides.

    A candidate whose recipe equals the best baseline's is that baseline, and takes no place. Those that break no guard
    come before those that do, these by how much. Ties go to what was asked first.
    """
    assert count > 0
    baseline = best(entries, split, BASELINE_KINDS)
    chosen: list[Standing] = []
    seen = {baseline.recipe_id} if baseline is not None else set()
    for entry in _ranked([entry for entry in entries if entry.kind == "candidate"], split, by):
        if entry.recipe_id in seen:
            continue
        seen.add(entry.recipe_id)
        chosen.append(entry)
        if len(chosen) == count:
            break
    return chosen + ([baseline] if baseline is not None else [])


def best(entries: Iterable[Standing], split: str, kinds: Sequence[str] = ()) -> Standing | None:
    """The best by score on `split` among some kinds (or all); None where none was scored there.

    Those that break no guard come first. Ties go to a baseline before a candidate, being the simpler recipe, and then to
    what was asked first.
    """
    ranked = _ranked([entry for entry in entries if not kinds or entry.kind in kinds], split, "score")
    return ranked[0] if ranked else None


def _ranked(entries: Iterable[Standing], split: str, by: str) -> list[Standing]:
    def value(entry: Standing) -> float:
        return (entry.fitness if by == "fitness" else entry.scores).get(split, math.nan)

    known = [entry for entry in entries if not math.isnan(value(entry))]

    def rank(entry: Standing) -> tuple[float, float, bool, int]:
        return entry.broken.get(split, 0.0), -value(entry), entry.kind == "candidate", _ask_index(entry.candidate)

    return sorted(known, key=rank)


def _ask_index(candidate: str) -> int:
    return int(candidate) if candidate.isdigit() else 0
