"""Rank correlation of the fitness on `search` with the score on `validation`: is the optimizer told what is wanted?"""

from dataclasses import dataclass

from evosearch.evaluation.statistics.rank_correlation import spearman
from evosearch.search.state import SearchState

LOW, ENOUGH = 0.3, 6  # correlations below LOW of at least ENOUGH models are a warning


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation over finalists and baselines.

    Attributes:
        value: In [-1, 1]; None for fewer than 3 models, or if all have the same fitness or score.
        models: Number of models with a fitness on the full search split and a score on validation.
    """

    value: float | None
    models: int

    def __str__(self) -> str:
        """Format as `rank correlation of fitness (search) and score (validation): 0.82 over 10 models`."""
        value = "unknown" if self.value is None else f"{self.value:.2f}"
        return f"rank correlation of fitness (search) and score (validation): {value} over {self.models} models"

    @property
    def warning(self) -> str | None:
        """What a low correlation means, and what to do; None if it is high enough or of too few models."""
        if self.value is None or self.value >= LOW or self.models < ENOUGH:
            return None
        return (
            f"The fitness ranks these {self.models} models unlike their scores ({self.value:.2f}): the search may "
            "maximize something else than the score. Try another `fitness`, or more `search` documents"
        )


def rank_correlation(state: SearchState) -> RankCorrelation | None:
    """Return the correlation over all models that were scored on both splits; None before two of them were."""
    pairs = []
    for (name, split), card in state.cards.items():
        told = state.cards.get((name, "search"))
        if split == "validation" and told is not None and card.score is not None:
            pairs.append((told.fitness.value, card.score))
    if len(pairs) < 2:
        return None
    fitness, scores = zip(*pairs, strict=True)
    return RankCorrelation(spearman(fitness, scores), len(pairs))


def correlation_texts(found: RankCorrelation | None) -> list[str]:
    """Return the correlation in words, and its warning if there is one."""
    return [] if found is None else [str(found), *filter(None, [found.warning])]
