"""Documents of the tiny tasks: deterministic, distinct, right, and disjoint from training strings."""

import random
import subprocess
import sys

import pytest

from evosearch.zoo.tiny_data import LENGTH, POOL, TASKS, VOCABULARY, draw, evaluation_documents, held_out, rows


@pytest.mark.parametrize("task", TASKS)
def test_the_evaluation_pool_is_distinct_and_held_out_from_training(task: str) -> None:
    texts = [document.text for document in evaluation_documents(task)]
    assert len(texts) == len(set(texts)) == POOL >= 1500
    assert all(held_out(text) and len(text) == LENGTH for text in texts)
    rng = random.Random(0)
    trained = {draw(task, rng).text for _ in range(3000)}
    assert not any(held_out(text) for text in trained)
    assert not trained & set(texts)


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [("reverse", "abcde", "edcba"), ("sort", "dbeac", "abcde"), ("deal", "abcde", "acebd"), ("median", "dbeac", "c")],
)
def test_answers_are_right(task: str, text: str, answer: str) -> None:
    assert TASKS[task].answer(text) == answer


@pytest.mark.parametrize("task", TASKS)
def test_documents_are_the_same_every_time(task: str) -> None:
    state = random.getstate()
    first = evaluation_documents(task, 50)
    random.seed(123)
    assert evaluation_documents(task, 50) == first == evaluation_documents(task, 80)[:50]
    random.setstate(state)


def test_documents_do_not_change_between_versions() -> None:
    """Scores are compared across machines and over time, so these strings are part of the tasks."""
    assert [evaluation_documents(task, 1)[0].context for task in TASKS] == FIRST


FIRST = ["Rgqrth=", "Slpelf=", "Dfscnm=", "Mtgdac="]


def test_rows_have_each_letter_once_and_the_answer() -> None:
    for row in rows("median", 100):
        choices = row["choices"]
        assert isinstance(choices, list)
        assert len(set(choices)) == LENGTH
        assert choices[int(str(row["gold"]))] == row["answer"]


def test_every_character_has_a_token() -> None:
    for task in TASKS:
        assert all(set(str(row["context"]) + str(row["answer"])) <= set(VOCABULARY) for row in rows(task, 200))


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, evosearch.zoo, evosearch.zoo.tiny_data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
