"""Generalization gaps: how far scores drop from the split that selected a candidate to the next.

The best of many candidates is partly the luckiest on the items that selected it. Every split has different items, so
scores drop by that luck from `search` to `validation`, and by what remains of it from `validation` to `test`. The gaps
of base and parents, which no split selected, are due to the items alone: one split may be harder than another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean

from evosearch.evaluation.statistics.intervals import Interval, independent_difference
from evosearch.evaluation.types import SPLITS
from evosearch.reporting.columns import Column, number, with_interval
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.setup.loading import score_interval

FINALISTS_TITLE = "Finalists: scores, and their change from split to split (95% intervals)"


@dataclass(frozen=True)
class Gap:
    """Drop of a score from one split to the next, in points, with a two-sided 95% interval; positive for a loss.

    The interval reflects the sampling of items alone; the effect of selection is the gap itself.
    """

    from_split: str
    to_split: str
    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class FinalistRow:
    """Scores and generalization gaps of a finalist, or of a model that no split selected."""

    candidate: str
    title: str  # such as `#17` or `parent sort`
    rank: int | None  # by validation, from 1; None for a model that was not selected
    score: float | None  # on validation
    scores: Mapping[str, Interval]  # split → score with its two-sided 95% interval
    gaps: tuple[Gap, ...]
    mask_scores: Mapping[int, float] = field(default_factory=dict)  # seed of the masks → score on validation, own first


def finalist_rows(ledger: Ledger, search_id: str, state: SearchState) -> tuple[FinalistRow, ...]:
    """List the finalists by rank."""
    found = (_row(ledger, search_id, state, one.candidate, one.rank) for one in state.finalists)
    return tuple(replace(row, mask_scores=_mask_scores(state, row.candidate)) for row in found)


def unchosen_rows(ledger: Ledger, search_id: str, state: SearchState) -> tuple[FinalistRow, ...]:
    """List base and parents, which no split selected, if they were scored on two splits."""
    names = [name for name, baseline in state.baselines.items() if baseline.kind in ("base", "parent")]
    rows = (_row(ledger, search_id, state, name, None) for name in names)
    return tuple(row for row in rows if row.gaps)


def _row(ledger: Ledger, search_id: str, state: SearchState, candidate: str, rank: int | None) -> FinalistRow:
    scores = {
        split: score_interval(ledger, search_id, state, candidate, split)
        for split in SPLITS
        if (card := state.cards.get((candidate, split))) is not None and card.score is not None
    }
    return FinalistRow(
        candidate, state.title(candidate), rank, state.score(candidate, "validation"), scores, gaps(scores)
    )


def _mask_scores(state: SearchState, finalist: str) -> dict[int, float]:
    """Return seed → score, or fitness where there is no score, on validation; empty without other seeds."""
    others = [one for one in state.reseeded.values() if one.finalist == finalist]
    if not others:
        return {}
    named = {int(state.recipe(finalist).get("seed", 0)): finalist} | {one.seed: one.candidate for one in others}
    cards = {seed: state.cards.get((name, "validation")) for seed, name in named.items()}
    return {seed: card.merit for seed, card in cards.items() if card is not None}


def gaps(scores: Mapping[str, Interval]) -> tuple[Gap, ...]:
    """Return the gaps between successive splits.

    Args:
        scores: Split → score with its interval, in the order of the splits.
    """
    found = []
    for (before, one), (after, other) in pairwise(scores.items()):
        drop = independent_difference(one, other)
        found.append(Gap(before, after, drop.value, drop.lower, drop.upper))
    return tuple(found)


def finalist_columns(rows: Sequence[FinalistRow]) -> list[Column[FinalistRow]]:
    """Return the columns of the finalists: scores by split, their changes, and the spread over seeds of masks."""
    masks = [Column("by mask seed (validation)", _mask_cell, left=True)] if any(row.mask_scores for row in rows) else []
    return [
        Column("model", lambda row: row.title + ("" if row.rank else " (not selected)"), left=True),
        *(_score_column(split) for split in SPLITS),
        *(_gap_column(before, after) for before, after in pairwise(SPLITS)),
        *masks,
    ]


def _mask_cell(row: FinalistRow) -> str:
    """Show the spread of scores over the seeds of a finalist's masks: `55.0 to 61.2, mean 58.4 (3 seeds)`."""
    found = row.mask_scores.values()
    if not found:
        return ""
    digits = 1 if row.score is not None else 4
    low, mean, high = (number(value, digits) for value in (min(found), fmean(found), max(found)))
    return f"{low} to {high}, mean {mean} ({len(found)} seed{'s' if len(found) > 1 else ''})"


def _score_column(split: str) -> Column[FinalistRow]:
    return Column(split, lambda row: number(row.scores[split].value if split in row.scores else None, 1))


def _gap_column(before: str, after: str) -> Column[FinalistRow]:
    """Show a gap as the change of the score: `-5.2 [-9.0, -1.4]` for a loss of 5.2 points."""

    def cell(row: FinalistRow) -> str:
        gap = next((one for one in row.gaps if (one.from_split, one.to_split) == (before, after)), None)
        return with_interval(-gap.value, -gap.upper, -gap.lower, sign="+") if gap else ""

    # Intervals must not be wrapped: a narrow terminal shows the last change, or none
    return Column(f"{before} to {after}", cell, spare=1 if after == SPLITS[-1] else 2)
