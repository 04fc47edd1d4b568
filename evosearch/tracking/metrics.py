"""Metrics and names as MLflow accepts them and people read them: two decimals of a score, no characters it refuses."""

import math
import re
from collections.abc import Mapping
from typing import Any

from evosearch.evaluation.types import SPLITS
from evosearch.tracking.changes import Point

MAX_NAME, KEPT = 250, 20  # characters: MLflow's limit, and those that a name keeps at its end, where the split is
POINTS, FRACTION, SECONDS = 2, 4, 2  # decimals
LINE = "score/by_split"  # score with one step per split, so that the generalization gap is a line


def safe_name(name: str) -> str:
    """Make a name acceptable to MLflow: `acc,none` becomes `acc`, other forbidden characters become underscores."""
    parts = [re.sub(r"[^\w.\- ]", "_", part.removesuffix(",none")) for part in name.split("/")]
    safe = "/".join(part if part.strip(".") else "_" for part in parts)
    return safe if len(safe) <= MAX_NAME else safe[: MAX_NAME - KEPT] + safe[-KEPT:]


def readable(value: float, decimals: int) -> float:
    """Round a value to some decimals, and a small one to two significant digits instead.

    >>> readable(35.4567, 2), readable(0.000123456, 2), readable(-0.289149, 4)
    (35.46, 0.00012, -0.2891)
    """
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, max(decimals, 1 - math.floor(math.log10(abs(value)))))


def points_of(card: Mapping[str, Any], now: int) -> list[Point]:
    """Return the points of a score card's summary; values that are not finite are left out.

    MLflow would sort infinity before every number.
    """
    split = card["split"]
    values = {name: value for name, value in _metrics(card).items() if math.isfinite(value)}
    return [Point(safe_name(name), value, step_of(split), now) for name, value in values.items()]


def _metrics(card: Mapping[str, Any]) -> dict[str, float]:
    """Return all numbers of a score card's summary by metric name, rounded.

    MLflow orders columns by name: `score/…` comes before `seconds/…` and `task/…`.
    """
    split = card["split"]
    out: dict[str, float] = {}
    if card["score"] is not None:
        out |= {f"score/{split}": readable(float(card["score"]), POINTS)}
        if card.get("minibatch") is None:
            out[LINE] = out[f"score/{split}"]
    fitness = card["fitness"]
    out |= {
        f"fitness/{split}": readable(float(fitness["value"]), FRACTION),
        f"fitness_stderr/{split}": readable(float(fitness["stderr"]), FRACTION),
    }
    for task, result in card["tasks"].items():
        name = f"task/{task}/{result['metric'].removesuffix(',none')}"
        out |= {f"{name}/{split}": readable(float(result["value"]), FRACTION)}
        out |= {f"{name}_stderr/{split}": readable(float(result["stderr"]), FRACTION)}
    for task, metrics in card.get("reported", {}).items():  # None if not finite
        named = {f"task/{task}/{metric.removesuffix(',none')}/{split}": value for metric, value in metrics.items()}
        known = {name: float(value) for name, value in named.items() if value is not None and name not in out}
        out |= {name: readable(value, FRACTION) for name, value in known.items()}
    guards = card.get("guards", {}).items()
    out |= {f"task/{task}/points/{split}": readable(float(points), POINTS) for task, points in guards}
    stages = card.get("seconds", {}).items()
    out |= {f"seconds/{stage}": readable(float(seconds), SECONDS) for stage, seconds in stages}
    return out | {f"tokens/{kind}": float(count) for kind, count in card.get("tokens", {}).items()}


def seconds_of(payload: Mapping[str, Any]) -> float:
    """Return the time that a result took on its worker."""
    return sum(float(value) for value in payload.get("seconds", {}).values())


def step_of(split: str) -> int:
    """Return the metric step of a split, by which `seconds` and `tokens` are series over the splits."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)
