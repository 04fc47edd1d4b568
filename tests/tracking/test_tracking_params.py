"""Parameters of candidates in MLflow: the genome, with holes of many numbers in summary."""

from typing import Any

from evosearch.search.ledger.events import Event
from evosearch.tracking.changes import Plan
from evosearch.tracking.parameters import MAX_PARAMS
from evosearch.tracking.translator import Translator


def params(genome: dict[str, Any]) -> dict[str, str]:
    recipe = {"models": [{"model": "zoo:tiny/reverse"}, {"model": "zoo:tiny/sort"}]}
    payload = {"candidate": "0", "group": 0, "genome": genome, "recipe": recipe, "recipe_id": "r"}
    translator, plan = Translator("id", "s"), Plan()
    translator.translate(Event(1, 1.0, "started", {"name": "s", "spec": {}}), plan)
    translator.translate(Event(2, 2.0, "asked", payload), plan)
    return plan["0"].params


def test_a_hole_with_many_numbers_is_one_parameter() -> None:
    many = {f"models[0].weight[q_proj {layer}]": layer / 100 for layer in range(2 * MAX_PARAMS)}
    assert params(many | {"models[1].weight": 0.25}) == {
        "reverse.weight": "0.99 (0 to 2) over 200 numbers",
        "sort.weight": "0.25",
    }


def test_other_holes_have_a_parameter_for_each_number() -> None:
    genome = {f"models[0].weight[layer {layer}]": 0.5 for layer in range(3)} | {"merge_method": "ties"}
    assert len(params(genome)) == 4
    assert len(params({f"w{index}": 0.5 for index in range(2 * MAX_PARAMS)})) == MAX_PARAMS
