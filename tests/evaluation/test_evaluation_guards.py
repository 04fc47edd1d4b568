"""Guarded tasks and unlearning targets: their keys in a suite, and their scores."""

from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.harness.item_fitness import log_unlikely
from evosearch.evaluation.statistics.scores import make_card
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import EXPECTED, ItemBatch, ItemSet, Tokens

Data = dict[str, Any]
COUNTS = {"search": 1, "validation": 1, "test": 1}
LEARNT: Data = {"task": "x", "name": "learnt", "metric": "acc", "chance": 0.2}
UNLEARNED: Data = {"task": "y", "name": "gone", "metric": "acc", "unlearn": True, "weight": 3.0}
BESIDE: Data = {"task": "z", "name": "beside", "metric": "acc", "report_only": True, "chance": 0.5}
COLUMNS = {
    "learnt": {"acc": np.array([1.0, 0.0, 1.0, 1.0]), EXPECTED: np.array([0.9, 0.2, 0.8, 0.6])},
    "gone": {
        "acc": np.array([0.0, 1.0, 0.0, 0.0]),
        "1-expected": np.array([0.5, 0.1, 0.9, 1 - 1e-9]),
        "1-gold_logprob": np.log([0.5, 0.1, 0.9, 1 - 1e-9]),
    },
    "beside": {"acc": np.array([1.0, 1.0, 0.0, 1.0])},
}
BATCH = ItemBatch("search", tuple(ItemSet(name, name, (0, 1, 2, 3), ("a", "b", "c", "d")) for name in COLUMNS))


def suite(tasks: list[Data], **changes: Any) -> Suite:
    return Suite.model_validate({"name": "s", "tasks": tasks, "documents": COUNTS, **changes})


def card(found: Suite, **changes: Any) -> Any:
    return make_card(found, BATCH, COLUMNS | changes, Tokens(), {})


def test_an_unlearning_target_scores_by_wrong_answers() -> None:
    found = card(suite([LEARNT, UNLEARNED], fitness="score"))
    assert found.score == pytest.approx(100 * (0.25 * (0.75 - 0.2) / 0.8 + 0.75 * 0.75))
    assert (found.tasks["gone"].metric, found.tasks["gone"].value) == ("1-acc", 0.75)
    assert found.columns["gone"]["1-acc"].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert found.columns["gone"]["acc"].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_an_unlearning_targets_fitness_is_the_probability_of_all_other_answers() -> None:
    found = card(suite([LEARNT, UNLEARNED]))
    assert found.fitness.value == pytest.approx(100 * (0.25 * (0.625 - 0.2) / 0.8 + 0.75 * 0.625))
    assert {name: one.value for name, one in found.task_fitness.items()} == pytest.approx(
        {"learnt": 53.125, "gone": 62.5}
    )
    found = card(suite([UNLEARNED], fitness="gold_logprob"))
    assert found.fitness.value == pytest.approx(np.mean(np.log([0.5, 0.1, 0.9, 1 - 1e-9])))


@given(st.floats(min_value=-800.0, max_value=-(2.0**-23)))
def test_log_unlikely_is_exact(logprob: float) -> None:
    with localcontext() as context:
        context.prec = 400
        exact = float((1 - Decimal(logprob).exp()).ln())
    found = float(log_unlikely(torch.tensor([logprob], dtype=torch.float64))[0])
    assert found == pytest.approx(exact, rel=1e-12, abs=1e-300)
    assert found <= 0.0


def test_log_unlikely_of_a_sure_answer_is_finite_and_of_an_unknown_one_unknown() -> None:
    found = log_unlikely(torch.tensor([0.0, -1e-12, -(2.0**-23), np.nan], dtype=torch.float64)).numpy()
    assert found[:3] == pytest.approx(-23 * np.log(2), rel=1e-6)
    assert np.isnan(found[3])


def test_guarded_tasks_have_points_of_their_own() -> None:
    guards = [{"task": "beside", "max_drop": 3}, {"task": "learnt", "max_drop": 0}, {"task": "gone", "max_drop": 1}]
    found = card(suite([LEARNT, UNLEARNED, BESIDE], guards=guards))
    assert found.guards == pytest.approx({"beside": 50.0, "learnt": 100 * 0.55 / 0.8, "gone": 75.0})
    assert found.summary()["guards"] == dict(found.guards)
    assert set(found.tasks) == {"learnt", "gone"}  # a guard alone does not make a task score
    assert card(suite([LEARNT, UNLEARNED, BESIDE | {"chance": 0}])).summary()["guards"] == {}


@pytest.mark.parametrize(
    ("column", "said"),
    [({}, "tasks[1].metric: 'acc' is not one number per document"), ({"acc": np.full(4, 7.0)}, "not in [0, 1]")],
)
def test_a_guard_needs_an_item_mean(column: Data, said: str) -> None:
    found = suite([LEARNT, BESIDE], guards=[{"task": "beside", "max_drop": 3}])
    with pytest.raises(SuiteError) as caught:
        card(found, beside=column)
    assert said in str(caught.value)
    assert "'beside' is guarded" in str(caught.value)


def test_an_unset_key_changes_no_digest() -> None:
    plain = suite([LEARNT])
    assert suite([LEARNT | {"unlearn": False}], guards=[]).digest() == plain.digest()
    changed = [suite([UNLEARNED]).digest(), suite([LEARNT], guards=[{"task": "learnt", "max_drop": 2}]).digest()]
    assert len({plain.digest(), *changed}) == 3


WRONG: list[tuple[Data, str]] = [
    (
        {"guards": [{"task": "lernt", "max_drop": 1}]},
        "guards[0].task: 'lernt' is not a task of this suite. Tasks: learnt",
    ),
    ({"guards": [{"task": "lernt", "max_drop": 1}]}, "Did you mean 'learnt'?"),
    (
        {"guards": [{"task": "learnt", "max_drop": -1}]},
        "guards[0].max_drop: Input should be greater than or equal to 0, got -1",
    ),
    ({"guards": [{"task": "learnt"}]}, "guards[0].max_drop: missing"),
    ({"guards": [{"task": "learnt", "max_drop": float("nan")}]}, "guards[0].max_drop: "),
    ({"guards": [{"task": "learnt", "drop": 1}]}, "guards[0].drop: unknown key. Known keys here: task, max_drop"),
    ({"guards": [{"task": "learnt", "max_drop": 1}] * 2}, "guards[1].task: 'learnt' is also guarded by guards[0]"),
    (
        {"tasks": [LEARNT, BESIDE | {"metric": ""}], "guards": [{"task": "beside", "max_drop": 1}]},
        "tasks[1].metric: missing, but 'beside' is guarded. A metric that is an item mean in [0, 1]",
    ),
    ({"tasks": [LEARNT, BESIDE]}, "tasks[1].chance: got 0.5 for a report-only task. Remove chance"),
    ({"tasks": [UNLEARNED | {"chance": 0.2}]}, "tasks[0].chance: got 0.2 for an unlearning target. Must be 0: such"),
    (
        {"tasks": [LEARNT, {"task": "z", "report_only": True, "unlearn": True}]},
        "tasks[1].unlearn: true for a report-only task",
    ),
    ({"tasks": [UNLEARNED | {"unlearn": [1]}]}, "tasks[0].unlearn: "),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_what_is_wrong_is_named(change: Data, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "tasks": [LEARNT], "documents": COUNTS} | change))
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_guarded_metric_must_be_an_item_mean_of_the_task(suite_data: Data, suite_file: Path) -> None:
    """Only lm-eval knows which metrics are means, so the harness checks it."""
    suite_data["tasks"].append({"task": "t_word", "name": "again", "report_only": True, "metric": "perplexity"})
    suite_data["guards"] = [{"task": "again", "max_drop": 1}]
    path = suite_file.with_name("guarded.yaml")  # all tests share the file itself
    path.write_text(yaml.safe_dump(suite_data))
    with pytest.raises(SuiteError, match=r"tasks\[4\].metric: 'perplexity' of 't_word' is not the mean of one number"):
        Harness(load_suite(path))
