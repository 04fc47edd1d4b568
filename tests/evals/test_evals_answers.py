"""The shipped suites' templates, filters and metrics on documents with the real sets' fields: right is 1, wrong 0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evosearch.evaluation.harness.frozen import Answers, FrozenBatch, FrozenDocument, FrozenTask, TaskResult
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.harness.right_answers import RightChoice
from evosearch.evaluation.suites.suite import load_suite

Write = Callable[[dict[str, Any]], str]  # a document → its generated text


def worked(document: dict[str, Any]) -> str:
    """The right answer in GSM8K's own form, as in the examples."""
    return " " + document["answer"]


def lenient(document: dict[str, Any]) -> str:
    """The right number in another form: last, with a currency sign and a comma."""
    return f" It is 3 less than {document['answer']}".split("\n####")[0] + f". So ${number(document):,}."


def astray(document: dict[str, Any]) -> str:
    """The right number followed by a wrong one."""
    return f" {number(document)} is wrong.\n#### {number(document) + 1}"


def number(document: dict[str, Any]) -> int:
    return int(document["answer"].split("#### ")[1].replace(",", ""))


def answers(frozen: FrozenBatch, write: Write, right: bool) -> Answers:
    """Texts by `write`; log-likelihoods that make the right choice, or a wrong one, the most likely."""
    lls = np.full(len(frozen.loglikelihoods), -5.0)
    texts = [""] * len(frozen.generations)
    for task in frozen.tasks:
        for document in task.documents:
            if document.queries[0].generates:
                texts[document.queries[0].requests[0]] = write(document.document)
            else:
                lls[_choices(task, document, right)] = -1e-6  # not 0, which length normalization would leave equal
    return Answers(lls, np.zeros(len(lls), dtype=np.bool_), texts, np.zeros(len(lls)))


def _choices(task: FrozenTask, document: FrozenDocument, right: bool) -> int:
    assert isinstance(document.right, RightChoice)
    assert document.right.gold is not None
    chosen = document.right.gold if right else (document.right.gold + 1) % len(document.right.requests)
    return document.queries[chosen].requests[0]


@pytest.fixture
def judge(hub: Path, smaller: Callable[..., Path], tokenizer: Any) -> Callable[..., dict[str, TaskResult]]:
    """`judge("reasoning", "search", write, right)` → suite task → result."""

    def call(name: str, split: str, write: Write, right: bool = True) -> dict[str, TaskResult]:
        harness = Harness(load_suite(smaller(name)))
        frozen = harness.freeze(harness.batch(split), tokenizer, 2048)
        return harness.collect(frozen, answers(frozen, write, right))

    return call


def values(judged: dict[str, TaskResult], task: str, metric: str) -> set[float]:
    return {float(value) for value in judged[task].columns[metric]}


@pytest.mark.parametrize("split", ["search", "validation", "test"])
def test_reasoning_right_answers_score_one(judge: Callable[..., dict[str, TaskResult]], split: str) -> None:
    judged = judge("reasoning", split, worked)
    assert values(judged, "gsm8k", "exact_match") == {1.0}
    assert judged["gsm8k_flexible"].reported["exact_match"] == 1.0
    for task in ("arc_easy", "arc_challenge", "hellaswag"):
        assert values(judged, task, "acc_norm") == {1.0}


def test_reasoning_wrong_answers_score_nothing(judge: Callable[..., dict[str, TaskResult]]) -> None:
    judged = judge("reasoning", "search", astray, right=False)
    assert values(judged, "gsm8k", "exact_match") == {0.0}
    assert judged["gsm8k_flexible"].reported["exact_match"] == 0.0
    for task in ("arc_easy", "arc_challenge", "hellaswag"):
        assert values(judged, task, "acc_norm") == {0.0}


def test_the_filters_differ_where_only_the_form_is_missing(judge: Callable[..., dict[str, TaskResult]]) -> None:
    judged = judge("reasoning", "test", lenient)
    assert values(judged, "gsm8k", "exact_match") == {0.0}  # no `####`
    assert judged["gsm8k_flexible"].reported["exact_match"] == 1.0


@pytest.mark.parametrize(
    ("form", "worth"),
    [
        ("答えは{n}個です。", 1.0),
        ("{n}", 1.0),  # no identifiable language
        ("Adding up all of the apples, we find that the answer is {n}.", 0.0),
        ("{n}+0=9、いや、答えは {n}.00 です", 1.0),
        ("答え：{wide}", 1.0),  # full-width digits
        ("まず1,234個。合わせて{n}", 1.0),
        ("", 0.0),
        ("数えられません。", 0.0),
        ("{n}個、つまり{n}{n}個です。", 0.0),
        ("答えは-{n}です。", 0.0),
        ("{n}個です。次は1個です。", 0.0),
    ],
)
@pytest.mark.parametrize("split", ["search", "test"])
def test_the_last_number_counts_if_the_text_is_japanese(
    judge: Callable[..., dict[str, TaskResult]], split: str, form: str, worth: float
) -> None:
    def write(document: dict[str, Any]) -> str:
        plain = str(document["answer_number"])
        return form.format(n=plain, wide=plain.translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789"}))

    assert values(judge("mgsm_ja", split, write), "problems", "exact_match") == {worth}
