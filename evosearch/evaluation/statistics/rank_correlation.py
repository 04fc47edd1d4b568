"""Rank correlation of fitness and score: is the optimizer told what is wanted? Pure numpy.

Spearman 1904: the correlation of two rankings, with mean ranks for ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST = 3  # models, below which a correlation says nothing
LOW, ENOUGH = 0.3, 6  # correlations below LOW of at least ENOUGH models are a warning


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlation of the fitness on `search` with the score on `validation`, over finalists and baselines.

    Attributes:
        value: In [-1, 1]; None for fewer than 3 models, or if all have the same fitness or score.
        models: Number of models with a fitness on the full search split and a score on validation.
        warning: What a low correlation means, and what to do; None if it is high enough or of too few models.
    """

    value: float | None
    models: int
    warning: str | None = None

    def __str__(self) -> str:
        """Format as `rank correlation of fitness (search) and score (validation): 0.82 over 10 models`."""
        value = "unknown" if self.value is None else f"{self.value:.2f}"
        return f"rank correlation of fitness (search) and score (validation): {value} over {self.models} models"


def rank_correlation(fitness: Sequence[float], scores: Sequence[float]) -> RankCorrelation:
    """Return the rank correlation of two values of the same models, with a warning if it is low."""
    value, models = spearman(fitness, scores), len(fitness)
    warning = None
    if value is not None and value < LOW and models >= ENOUGH:
        warning = (
            f"The fitness ranks these {models} models unlike their scores ({value:.2f}): the search may maximize "
            "something else than the score. Try another `fitness`, or more `search` documents"
        )
    return RankCorrelation(value, models, warning)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the rank correlation in [-1, 1]; None for fewer than 3 pairs, or if all values of a side are equal.

    >>> spearman([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0])
    0.8
    """
    assert len(a) == len(b)
    if len(a) < LEAST:
        return None
    one, other = (_ranks(values) - (len(a) + 1) / 2 for values in (a, b))
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale > 0 else None


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
