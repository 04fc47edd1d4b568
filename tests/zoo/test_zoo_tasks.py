"""The lm-eval tasks of the tiny zoo, loaded by lm-eval."""

from pathlib import Path
from typing import Any

import pytest

from evosearch.zoo.tiny_data import POOL, TASKS, evaluation_documents

EVALS = Path(__file__).resolve().parents[2] / "evals" / "tiny"


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(EVALS), include_defaults=False)
    return manager.load([f"tiny_{task}" for task in TASKS])["tasks"]


def test_tasks_contain_the_evaluation_pool(tasks: dict[str, Any]) -> None:
    for name in TASKS:
        task = tasks[f"tiny_{name}"]
        documents = list(task.test_docs())
        assert len(documents) == POOL
        for row, document in zip(documents[:20], evaluation_documents(name, 20), strict=True):
            assert task.doc_to_text(row) == document.context
            if name == "median":
                assert task.doc_to_choice(row)[task.doc_to_target(row)] == document.answer
            else:
                assert task.doc_to_target(row) == document.answer


def test_output_types_and_metrics(tasks: dict[str, Any]) -> None:
    kinds = {
        name: (task.config.output_type, [m["metric"] for m in task.config.metric_list]) for name, task in tasks.items()
    }
    assert kinds.pop("tiny_median") == ("multiple_choice", ["acc"])
    assert set(map(str, kinds.values())) == {str(("generate_until", ["exact_match"]))}
