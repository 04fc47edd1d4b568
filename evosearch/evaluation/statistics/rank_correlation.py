"""Spearman's rank correlation (Spearman 1904): the correlation of two rankings, with mean ranks for ties. Pure numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAST = 3  # models, below which a correlation says nothing


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
