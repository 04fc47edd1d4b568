"""Score and fitness from columns, compared with the formulas by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evosearch.evaluation.harness.gold import gold_choice, gold_text
from evosearch.evaluation.statistics.scores import make_card
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import EXPECTED, GOLD, Estimate, ItemBatch, ItemSet, Tokens

P = np.array([0.9, 0.2, 0.8, 0.6])
COLUMNS = {
    "a": {"acc": np.array([1.0, 0.0, 1.0, 1.0]), GOLD: np.array([-1.0, -2.0, -3.0, -2.0]), EXPECTED: P},
    "b": {"acc": np.array([0.0, 1.0]), GOLD: np.array([-0.5, -1.5]), EXPECTED: np.array([0.5, 0.2])},
}
BATCH = ItemBatch(
    "test", (ItemSet("a", "x", (0, 1, 2, 3), ("h0", "h1", "h2", "h3")), ItemSet("b", "y", (0, 1), ("h4", "h5")))
)


def suite(fitness: str) -> Suite:
    tasks = [
        {"task": "x", "name": "a", "metric": "acc", "chance": 0.5, "weight": 3.0},
        {"task": "y", "name": "b", "metric": "acc", "chance": 0.0},
    ]
    counts = {"search": 1, "validation": 1, "test": 1}
    return Suite.model_validate({"name": "s", "tasks": tasks, "documents": counts, "fitness": fitness})


def test_score_is_the_chance_centred_weighted_mean() -> None:
    card = make_card(suite("score"), BATCH, COLUMNS, Tokens(forwarded=5), {"score": 1.5})
    assert card.score == pytest.approx(100 * (0.75 * (0.75 - 0.5) / 0.5 + 0.25 * 0.5))
    assert (card.tasks["a"].value, card.tasks["a"].n) == (0.75, 4)
    assert card.tasks["a"].stderr == pytest.approx(0.25)  # sqrt(0.25 / 4)
    assert card.tasks["b"].stderr == pytest.approx(0.5)
    assert card.fitness.value == card.score
    assert card.fitness.stderr == pytest.approx(100 * np.hypot(0.75 * 0.25 / 0.5, 0.25 * 0.5))
    assert (card.tokens.forwarded, card.seconds) == (5, {"score": 1.5})
    assert card.set_digests == {items.task: items.digest for items in BATCH.sets}


def test_gold_fitness_is_the_weighted_mean_of_item_means() -> None:
    card = make_card(suite("gold_logprob"), BATCH, COLUMNS, Tokens(), {})
    stderr_a, stderr_b = np.std([-1, -2, -3, -2], ddof=1) / 2, 0.5
    assert card.fitness == Estimate(
        pytest.approx(0.75 * -2 + 0.25 * -1), pytest.approx(np.hypot(0.75 * stderr_a, 0.25 * stderr_b)), 6
    )
    assert card.score == pytest.approx(50.0)


def test_the_expected_score_has_the_scores_formula() -> None:
    card = make_card(suite("expected_score"), BATCH, COLUMNS, Tokens(), {})
    assert card.fitness.value == pytest.approx(100 * (0.75 * (0.625 - 0.5) / 0.5 + 0.25 * 0.35))
    assert card.fitness.stderr == pytest.approx(100 * np.hypot(0.75 * P.std(ddof=1) / 2 / 0.5, 0.25 * 0.15))
    assert card.task_fitness["a"].value == pytest.approx(100 * 0.125 / 0.5)
    sure = {name: {**own, EXPECTED: own["acc"]} for name, own in COLUMNS.items()}
    assert make_card(suite("expected_score"), BATCH, sure, Tokens(), {}).fitness.value == pytest.approx(card.score)


def test_one_item_has_no_spread() -> None:
    batch = ItemBatch("test", (ItemSet("b", "y", (0,), ("h",)),))
    card = make_card(suite("score"), batch, {"b": {"acc": np.array([1.0]), GOLD: np.array([-1.0])}}, Tokens(), {})
    assert (card.score, card.fitness.stderr, card.fitness.n) == (100.0, 0.0, 1)


@pytest.mark.parametrize(
    ("target", "choices", "shots", "expected"),
    [
        ("word", None, 0, "word"),
        ("word", None, 2, " word"),  # examples show the delimiter
        (["first", "second"], None, 0, "first"),
        (1, ["a", "b"], 0, "b"),
        (42, None, 0, "42"),
        ("", None, 0, None),
        ([], None, 0, None),
    ],
)
def test_the_gold_text_is_the_first_target(target: Any, choices: Any, shots: int, expected: str | None) -> None:
    config = SimpleNamespace(target_delimiter=" ", num_fewshot=shots, doc_to_choice=choices)
    task = SimpleNamespace(
        config=config,
        doc_to_target=lambda doc: target,
        doc_to_choice=lambda doc: choices,
        doc_to_prefix=lambda doc: None,
    )
    assert gold_text(task, {}) == expected


@pytest.mark.parametrize(("target", "expected"), [(1, 1), ("b", 1), ([1, 0], 1), (2, None), (-100, None), ("z", None)])
def test_the_gold_choice_is_an_index(target: Any, expected: int | None) -> None:
    task = SimpleNamespace(doc_to_target=lambda doc: target, doc_to_choice=lambda doc: ["a", "b"])
    assert gold_choice(task, {}) == expected
