"""How far scores fall from the split that chose a candidate to the next.

The best of many candidates is partly the luckiest on the items that chose it. Each split is of other items, so a score
falls from `search` to `validation` by that luck, and from `validation` to `test` by what was left of it. What no split
chose, base and parents, shows how much of a fall is the items' own: one split may be harder than another.
"""

from itertools import pairwise
from typing import Any

from evosearch.evaluation.statistics.intervals import independent_difference
from evosearch.evaluation.types import SPLITS
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.setup.loading import score_interval


def finalist_rows(ledger: Ledger, search_id: str, state: SearchState) -> list[dict[str, Any]]:
    """The finalists by rank, as recorded, with what `shrinkage` finds of each."""
    return [one.to_payload() | shrinkage(ledger, search_id, state, one.candidate) for one in state.finalists]


def unchosen_rows(ledger: Ledger, search_id: str, state: SearchState) -> list[dict[str, Any]]:
    """Base and parents, which were chosen by no split: {candidate, scores, falls} of each."""
    names = [name for name, baseline in state.baselines.items() if baseline.kind in ("base", "parent")]
    rows = [{"candidate": name} | shrinkage(ledger, search_id, state, name) for name in names]
    return [row for row in rows if row["falls"]]


def shrinkage(ledger: Ledger, search_id: str, state: SearchState, candidate: str) -> dict[str, Any]:
    """A candidate's score on each split that it was scored on, and how far it fell from each to the next.

    Returns:
        scores: split → {value, lower, upper, n}; falls: [{from, to, value, lower, upper}], positive where the score
        fell. Intervals are two-sided, at 95%, of the items; that a split chose the candidate they leave out: that is
        what the fall shows.
    """
    found = {
        split: score_interval(ledger, search_id, state, candidate, split)
        for split in SPLITS
        if (candidate, split) in state.cards
    }
    falls = []
    for (before, one), (after, other) in pairwise(found.items()):
        fall = independent_difference(one, other)
        falls.append({"from": before, "to": after, "value": fall.value, "lower": fall.lower, "upper": fall.upper})
    scores = {split: {key: getattr(on, key) for key in ("value", "lower", "upper", "n")} for split, on in found.items()}
    return {"scores": scores, "falls": falls}
