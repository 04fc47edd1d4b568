"""Rank correlation of fitness on search and score on validation, as models are scored."""

from collections.abc import Mapping
from typing import Any

from evosearch.evaluation.statistics.rank_correlation import RankCorrelation, rank_correlation


class RankAgreement:
    """Rank correlation over all models that are scored on both splits."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}  # model → fitness on the full search split
        self._wanted: dict[str, float] = {}  # model → score on validation

    def scored(self, card: Mapping[str, Any]) -> RankCorrelation | None:
        """Take a card; return the correlation if the card is on validation and it is defined."""
        name = str(card["candidate"])
        if card["split"] == "search" and card.get("minibatch") is None:
            self._told[name] = float(card["fitness"]["value"])
        if card["split"] != "validation" or card["score"] is None:
            return None
        self._wanted[name] = float(card["score"])
        both = [name for name in self._wanted if name in self._told]
        found = rank_correlation([self._told[name] for name in both], [self._wanted[name] for name in both])
        return found if found.value is not None else None
