"""The winner against another model, document by document: which were won, which were lost, and with what answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evosearch.evaluation.harness.document_texts import DocumentText
from evosearch.evaluation.types import Column, ItemSet
from evosearch.reporting.item_tables import by_item

LOST, WON, SAME = "lost", "won", "same"
BOTH = {0.0: "both wrong", 1.0: "both right"}  # outcome by the common value
ORDER = (LOST, WON, SAME, *BOTH.values())  # of rows


@dataclass(frozen=True)
class Answers:
    """One model on one task.

    Attributes:
        values: (items,) the suite's metric, in [0, 1].
        columns: All columns of the ledger.
    """

    values: Column
    columns: Mapping[str, Column]

    def given(self, texts: Sequence[DocumentText]) -> list[str]:
        """Return the choice that the model gave to each document; empty texts where the ledger does not have it."""
        found = by_item(self.columns)
        return [text.chosen(own) for text, own in zip(texts, found, strict=True)] if found else [""] * len(texts)


def comparison_rows(
    items: ItemSet, winner: Answers, other: Answers, texts: Sequence[DocumentText] | None
) -> pd.DataFrame:
    """Return one row for each document of a task.

    Args:
        items: The documents.
        winner: The winner's answers.
        other: Those of the model that it is compared with.
        texts: The documents in words; None leaves question and answers out.
    """
    pairs = list(zip(map(float, winner.values), map(float, other.values), strict=True))
    rows: dict[str, Any] = {
        "outcome": [_outcome(*pair) for pair in pairs],
        "task": [items.task] * len(items),
        "document": list(items.doc_ids),
    }
    if texts is not None:
        rows |= {
            "question": [text.question for text in texts],
            "choices": [" | ".join(text.choices) for text in texts],
            "right answer": [text.right for text in texts],
            "winner's answer": winner.given(texts),
            "other's answer": other.given(texts),
        }
    rows |= {"winner": [own for own, _ in pairs], "other": [theirs for _, theirs in pairs]}
    return pd.DataFrame(rows)


def in_order(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the rows of all tasks: lost documents first, then won ones."""
    joined = pd.concat(frames, ignore_index=True)
    places = joined["outcome"].map({outcome: place for place, outcome in enumerate(ORDER)})
    return joined.iloc[places.argsort(kind="stable")].reset_index(drop=True)


def _outcome(own: float, theirs: float) -> str:
    if own != theirs:
        return WON if own > theirs else LOST
    return BOTH.get(own, SAME)
