"""Rows of a comparison, one per document: what came out, and which choice each model gave by the metric's rule."""

import numpy as np
import pytest

from evosearch.evaluation.harness.document_texts import DocumentText
from evosearch.evaluation.types import LOGLIKELIHOODS, REQUESTS, ItemSet
from evosearch.reporting.comparison_table import Answers, comparison_rows, in_order
from evosearch.reporting.item_tables import by_item

ITEMS = ItemSet("quiz", "quiz", (3, 5, 8, 9), ("a" * 64, "b" * 64, "c" * 64, "d" * 64))
TEXTS = [DocumentText(f"question {index}", ("one", "two"), "two") for index in range(4)]


def answers(values: list[float], chosen: list[int]) -> Answers:
    lls = np.array([-1.0 if choice == one else -2.0 for one in chosen for choice in (0, 1)])
    return Answers(np.array(values), {LOGLIKELIHOODS: lls, REQUESTS: np.full(4, 2.0)})


def test_lost_documents_come_first_then_won_ones() -> None:
    winner, other = answers([1.0, 0.0, 1.0, 0.0], [1, 0, 1, 0]), answers([1.0, 1.0, 0.0, 0.0], [1, 1, 0, 0])
    table = in_order([comparison_rows(ITEMS, winner, other, TEXTS)])
    assert list(table["outcome"]) == ["lost", "won", "both wrong", "both right"]
    assert list(table["document"]) == [5, 8, 9, 3]
    assert list(table["winner's answer"]) == ["one", "two", "one", "two"]
    assert list(table["other's answer"]) == ["two", "one", "one", "two"]
    assert list(table["question"]) == ["question 1", "question 2", "question 3", "question 0"]


def test_shares_of_right_answers_that_are_equal_are_neither_right_nor_wrong() -> None:
    half = Answers(np.full(4, 0.5), {})
    table = comparison_rows(ITEMS, half, half, TEXTS)
    assert set(table["outcome"]) == {"same"}
    assert set(table["winner's answer"]) == {""}, "generated texts are not in the ledger"


@pytest.mark.parametrize(
    ("text", "loglikelihoods", "given"),
    [
        (DocumentText("", ("a", "bbbb")), [-2.0, -3.0], "a"),
        (DocumentText("", ("a", "bbbb"), divisors=(1.0, 4.0)), [-2.0, -3.0], "bbbb"),
        (DocumentText("", ("a", "b"), unconditional=True), [-2.0, -3.0, -1.0, -9.0], "b"),
        (DocumentText("", ("a", "b")), [-2.0, -3.0, -1.0, -9.0], "a"),
        (DocumentText("", ("a", "b")), [-2.0], ""),
        (DocumentText("", ()), [-2.0], ""),
    ],
)
def test_the_answer_is_the_metrics_choice(text: DocumentText, loglikelihoods: list[float], given: str) -> None:
    assert text.chosen(loglikelihoods) == given


def test_loglikelihoods_are_split_by_item() -> None:
    found = by_item({LOGLIKELIHOODS: np.arange(5.0), REQUESTS: np.array([2.0, 3.0])})
    assert [list(one) for one in found] == [[0.0, 1.0], [2.0, 3.0, 4.0]]
    assert by_item({"acc": np.zeros(2)}) == []
