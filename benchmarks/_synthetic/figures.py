"""Medians with quartiles, and Markdown tables."""

from collections.abc import Sequence

import numpy as np

Spread = dict[str, float]


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles, with linear interpolation."""
    lower, median, upper = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75))
    return {"median": float(median), "lower": float(lower), "upper": float(upper)}


def shown(found: Spread | None, digits: int = 1) -> str:
    """`median [lower, upper]`, or a dash."""
    if found is None:
        return "–"
    median, lower, upper = (f"{found[key]:.{digits}f}" for key in ("median", "lower", "upper"))
    return f"{median} [{lower}, {upper}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table with a first column of text and further columns of figures."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
