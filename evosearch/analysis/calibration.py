"""Calibration of multiple-choice answers: expected calibration error and Brier score. Pure numpy.

    p        = softmax of an item's choices
    ECE      = Σ_b |B_b| / n · |mean right in B_b − mean confidence in B_b|       (Guo et al. 2017, eq. 3)
    Brier    = mean over items of Σ_c (p_c − y_c)²                                (Brier 1950), 0 at best, 2 at worst

The confidence is the largest p. B_b are `BINS` bins of equal width. y is 1 for the right choice; if an item has
several, their probabilities count as one choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

BINS = 15


@dataclass(frozen=True)
class Answered:
    """One multiple-choice item: scores of the choices, whose softmax the model chooses by, and the right choices."""

    scores: Vector  # (choices,); -inf for a choice that cannot be chosen
    right: tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """Calibration of one model on one task.

    Attributes:
        ece: Expected calibration error, in [0, 1].
        brier: Brier score, in [0, 2].
        confidence: Mean confidence.
        accuracy: Share of items whose most likely choice is right.
        items: Number of items.
    """

    ece: float
    brier: float
    confidence: float
    accuracy: float
    items: int


def calibration(items: Sequence[Answered], bins: int = BINS) -> Calibration:
    """Return the calibration over at least one item."""
    assert items, "no items"
    shares = [_softmax(item.scores) for item in items]
    confidence = np.array([float(share.max()) for share in shares])
    right = np.array(
        [int(share.argmax()) in item.right for share, item in zip(shares, items, strict=True)], dtype=float
    )
    brier = [_brier(share, item.right) for share, item in zip(shares, items, strict=True)]
    return Calibration(
        ece=expected_error(confidence, right, bins),
        brier=float(np.mean(brier)),
        confidence=float(confidence.mean()),
        accuracy=float(right.mean()),
        items=len(items),
    )


def expected_error(confidence: Vector, right: Vector, bins: int = BINS) -> float:
    """Return the expected calibration error of (n,) confidences in [0, 1] and (n,) zeros and ones."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (b/bins, (b+1)/bins], as in the paper
    gaps = np.bincount(place, right, bins) - np.bincount(place, confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _brier(share: Vector, right: tuple[int, ...]) -> float:
    wrong = np.delete(share, list(right))
    return float((share[list(right)].sum() - 1.0) ** 2 + (wrong**2).sum())


def _softmax(scores: Vector) -> Vector:
    likely = np.exp(scores - scores.max())
    shares: Vector = likely / likely.sum()
    return shares
