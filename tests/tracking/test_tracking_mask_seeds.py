"""Finalists with other seeds of their masks are finished runs of their own, with the recipe that was scored."""

from typing import Any

from evosearch.tracking.changes import Changes
from evosearch.tracking.translator import Translator


def test_a_finalist_with_another_seed_has_its_own_run(story: Any) -> None:
    story.begin()
    story.first_group()
    story.scored("2", 3.5, "validation")
    story.add("finalist", candidate="2", rank=1, score=35.0)
    other = {**story.recipe(0.2), "seed": 1}
    story.add("reseeded", candidate="reseeded:2:1", finalist="2", seed=1, recipe=other)
    story.scored("reseeded:2:1", 3.0, "validation")
    translator, plan = Translator(story.search_id, "night"), dict[str, Changes]()
    for event in story.ledger.events(story.search_id):
        translator.translate(event, plan)
    run = plan["reseeded:2:1"]
    assert {name: run.tags[name] for name in ("kind", "finalist", "mask_seed")} == {
        "kind": "reseeded",
        "finalist": "2",
        "mask_seed": "1",
    }
    assert run.status == "FINISHED"
    assert run.recipe is not None
    assert "seed: 1" in run.recipe()
    assert {point.value for point in run.points if point.name == "score/validation"} == {30.0}
    assert not [point for point in run.points if point.name == "best_fitness"]
