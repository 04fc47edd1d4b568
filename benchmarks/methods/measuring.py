"""One cell of the benchmark: a method on the models and documents of a problem and seed."""

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from benchmarks.board.entries import Json
from evosearch.errors import CandidateError
from evosearch.evaluation.types import ScoreCard
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec

from .sweep import Setting, allowed, sweep
from .worlds import World

SAMPLE = "all tasks' prompts, in turn"  # what `World.sample` is


def digest(spec: MethodSpec, documents: Mapping[str, int], count: int) -> str:
    """Eight digits of the settings that are measured and the numbers of documents."""
    data = [sweep(spec, count), sorted(documents.items()), *([SAMPLE] if spec.statistic else [])]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def measure(spec: MethodSpec, world: World, count: int) -> Json:
    """Measure a method at its defaults, and at the setting of its sweep that is best on validation.

    Args:
        spec: The method.
        world: Models and documents.
        count: Settings of the sweep at most, the defaults included.

    Returns:
        Scores on test with 95% intervals, and paired leads over the defaults and over the uniform average of all
        experts; or why the method cannot be measured.
    """
    began, given = time.monotonic(), world.given
    tried: list[tuple[float, Setting, Recipe]] = []
    failed: list[str] = []
    for setting, recipe in allowed(spec, given.base, given.experts, world.seed, count, world.sample):
        try:
            score = world.card(recipe, "validation").score
        except CandidateError as error:
            failed.append(f"{setting}: {error.reason}")
            continue
        assert score is not None, "every right answer was read"
        tried.append((score, setting, recipe))
    about: Json = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "failed": failed}
    if not tried:
        return about | {"refused": failed[0] if failed else f"{spec.name} takes {spec.models[0]} models or more"}
    best = max(tried, key=lambda entry: entry[0])  # of equal ones the first: the defaults
    first = next((entry for entry in tried if entry[1] == sweep(spec, 1)[0]), None)
    cards = {id(entry): world.card(entry[2], "test") for entry in (first, best) if entry is not None}
    found = about | {"models": len(best[2].models), "of": len(given.experts), "settings": len(tried)}
    found["best"] = _entry(best, cards[id(best)], world)
    found["default"] = None if first is None else _entry(first, cards[id(first)], world)
    found["gain"] = None if first is None else world.lead(cards[id(best)], cards[id(first)])
    found["lead"] = world.lead(cards[id(best)], world.uniform)
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _entry(tried: tuple[float, Setting, Recipe], card: ScoreCard, world: World) -> Json:
    score, setting, _ = tried
    return {"setting": setting, "validation": round(score, 3), "test": world.shown(card)}
