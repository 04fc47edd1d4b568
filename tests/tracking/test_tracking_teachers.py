"""Searches told by teachers in MLflow: their teachers, cards without a score, and unverified winners."""

from typing import Any

from evosearch.search.ledger.events import Event
from evosearch.tracking.changes import SEARCH, Plan
from evosearch.tracking.translator import Translator


def translated(*written: tuple[str, dict[str, Any]]) -> Plan:
    plan: Plan = {}
    translator = Translator("id", "s")
    for seq, entry in enumerate(written, start=1):
        translator.translate(Event(seq, float(seq), *entry), plan)
    return plan


def gated(promoted: str | None, unverified: bool) -> tuple[str, dict[str, Any]]:
    return "gated", {"winner": "0", "promoted": promoted, "unverified": unverified, "reasons": [], "comparisons": []}


def test_teachers_are_tags_of_the_search() -> None:
    chosen = {"sort": "zoo:tiny/sort", "group/leaf task": "org/model"}
    tags = translated(("teachers", {"teachers": chosen, "scores": {}}))[SEARCH].tags
    assert tags["teacher.sort"] == "zoo:tiny/sort"
    assert tags["teacher.group/leaf task"] == "org/model"


def test_a_card_without_a_score_has_a_fitness_alone() -> None:
    asked = {"candidate": "0", "group": 0, "genome": {}, "recipe": {}, "recipe_id": "r", "minibatch": None}
    fitness = {"value": -0.25, "stderr": 0.1, "n": 4}
    card = {"candidate": "0", "split": "search", "batch": "b", "score": None, "fitness": fitness, "tasks": {}}
    points = {point.name: point.value for point in translated(("asked", asked), ("scored", card))["0"].points}
    assert points["fitness/search"] == -0.25
    assert "score/search" not in points


def test_an_unverified_winner_is_marked() -> None:
    assert translated(gated("0", True))[SEARCH].tags["unverified"] == "true"
    assert "unverified" not in translated(gated("0", False))[SEARCH].tags
