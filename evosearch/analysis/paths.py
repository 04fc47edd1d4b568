"""Barriers of the loss along a path between two models. Pure.

    barrier = max_t [L(t) − ((1 − t) L(0) + t L(1))]        (Frankle et al. 2020; Entezari et al. 2022, eq. 1)

With two ends of one basin it is about 0.
"""

from collections.abc import Sequence


def barrier(points: Sequence[tuple[float, float]]) -> float:
    """Return the barrier's height, at least 0.

    Args:
        points: (t, loss) from t = 0 to t = 1, in order.
    """
    (_, start), (_, end) = points[0], points[-1]
    return max(0.0, *(loss - ((1 - t) * start + t * end) for t, loss in points))


def lowest(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the point with the lowest loss, the first of equal ones."""
    return min(points, key=lambda point: point[1])
