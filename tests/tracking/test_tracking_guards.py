"""Guards and minibatches in MLflow: points of guarded tasks, and the best fitness without broken guards."""

from typing import Any

from evosearch.search.ledger.events import Event
from evosearch.tracking.changes import SEARCH, Plan
from evosearch.tracking.translator import Translator


def asked(name: str) -> tuple[str, dict[str, Any]]:
    return "asked", {"candidate": name, "group": 0, "genome": {}, "recipe": {}, "recipe_id": f"r{name}", "minibatch": 1}


def scored(name: str, value: float, **more: Any) -> tuple[str, dict[str, Any]]:
    fitness = {"value": value, "stderr": 0.1, "n": 4}
    card = {"split": "search", "batch": "b", "score": value, "fitness": fitness, "tasks": {}, "guards": {"kept": 41.0}}
    return "scored", {"candidate": name, **card, **more}


def told(name: str, value: float, violation: float) -> dict[str, Any]:
    return {"candidate": name, "value": value, "stderr": 0.1, "n": 4, "state": "scored", "violations": [violation]}


def translated(*written: tuple[str, dict[str, Any]]) -> Plan:
    plan: Plan = {}
    translator = Translator("id", "s")
    for seq, entry in enumerate(written, start=1):
        translator.translate(Event(seq, float(seq), *entry), plan)
    return plan


def test_the_best_fitness_is_reported_and_breaks_no_guard() -> None:
    plan = translated(
        *(asked(name) for name in "012"),
        *(scored(name, 50.0 + int(name), minibatch=1) for name in "012"),
        ("told", {"group": 0, "observations": [told("0", 3.0, 0.0), told("1", 9.0, 0.5), told("2", 4.0, 0.0)]}),
        scored("2", 1.0),  # on the full split, before finalists are chosen
    )
    best = [(point.step, point.value) for point in plan[SEARCH].points if point.name == "best_fitness"]
    assert best == [(0, 3.0), (1, 3.0), (2, 4.0)]
    assert plan["0"].tags["sample"] == "minibatch 1 of search"


def test_the_best_fitness_goes_on_after_an_optimizer_that_was_given_up() -> None:
    """With --continue-from-best, what was pending is scored and never reported."""
    shards = [("asked", {"candidate": name, "gradient": True}) for name in "34"]
    fitness = {"value": 1.0, "stderr": 0.0, "n": 1}
    about = {"split": "search", "minibatch": 0, "fitness": fitness}
    plan = translated(
        *(asked(name) for name in "012"),
        *(scored(name, 50.0 + int(name), minibatch=1) for name in "021"),
        ("told", {"group": 0, "observations": [told("0", 3.0, 0.0), told("2", 4.0, 0.0)]}),
        *shards,
        *(("differentiated", {"candidate": name, **about}) for name in "34"),
        ("restarted", {"start": {}, "reason": "other library versions"}),
        asked("5"),
        ("told", {"group": 2, "observations": [told("5", 9.0, 0.0)]}),
    )
    best = [(point.step, point.value) for point in plan[SEARCH].points if point.name == "best_fitness"]
    assert best == [(0, 3.0), (1, 3.0), (2, 4.0), (3, 4.0), (4, 4.0), (5, 9.0)]


def test_points_of_guarded_tasks_are_shown() -> None:
    plan = translated(asked("0"), scored("0", 1.0, minibatch=1))
    assert {point.name: point.value for point in plan["0"].points}["task/kept/points/search"] == 41.0
