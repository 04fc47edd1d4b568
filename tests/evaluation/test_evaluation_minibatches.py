"""Minibatches of a split: disjoint, even and complete, with the scores of their items."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosearch.evaluation.statistics.gradient_steps import gradient_steps
from evosearch.evaluation.statistics.minibatches import partition
from evosearch.evaluation.statistics.scores import make_card
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import EXPECTED, LOGLIKELIHOODS, Column, ItemBatch, ItemSet, Tokens

TASKS = [
    {"task": "x", "name": "a", "metric": "acc", "chance": 0.25},
    {"task": "y", "name": "b", "metric": "acc", "unlearn": True, "weight": 2.0},
    {"task": "z", "name": "c", "metric": "acc", "report_only": True},
]
GUARDS = [{"task": "a", "max_drop": 1.0}, {"task": "c", "max_drop": 1.0}]
SUITE = Suite.model_validate(
    {"name": "s", "tasks": TASKS, "guards": GUARDS, "documents": {"search": 9, "validation": 1, "test": 1}}
)


def whole(*counts: int) -> ItemBatch:
    def items(task: str, count: int) -> ItemSet:
        ids = tuple(range(3, 3 + 2 * count, 2))
        return ItemSet(task, task, ids, tuple(f"{task}{i}" for i in ids), tuple(f"g{i // 4}" for i in ids))

    return ItemBatch("search", tuple(map(items, "abc", counts)))


@given(st.integers(2, 9), st.integers(9, 40), st.integers(9, 40), st.integers(0, 5))
def test_minibatches_are_disjoint_even_and_complete(count: int, first: int, second: int, seed: int) -> None:
    batch = whole(first, second)
    minibatches = partition(SUITE, batch, count, seed)
    assert len(minibatches.batches) == count
    for index, items in enumerate(batch.sets):
        own = [minibatch.sets[index] for minibatch in minibatches.batches]
        ids = [doc_id for minibatch in own for doc_id in minibatch.doc_ids]
        assert sorted(ids) == list(items.doc_ids)
        assert max(map(len, own)) - min(map(len, own)) <= 1
        for minibatch in own:
            assert list(minibatch.doc_ids) == sorted(minibatch.doc_ids)
            assert minibatch.doc_hashes == tuple(f"{items.task}{i}" for i in minibatch.doc_ids)
            assert minibatch.groups == tuple(f"g{i // 4}" for i in minibatch.doc_ids)
    assert len({minibatch.digest for minibatch in (*minibatches.batches, batch)}) == count + 1


def test_minibatches_follow_from_the_seed_and_the_documents() -> None:
    digests = [
        [minibatch.digest for minibatch in partition(SUITE, whole(20, 20), 4, seed).batches] for seed in (7, 7, 8)
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_a_held_back_part_has_whole_groups_and_hardly_more_documents_than_wanted() -> None:
    hashes = tuple(f"a{i}" for i in range(400))
    linked = ItemSet("a", "a", tuple(range(400)), hashes, tuple(f"g{i // 10}" for i in range(400)))
    steps = gradient_steps(SUITE, ItemBatch("search", (linked,)), documents=12, shards=1, hold_back=0.1, seed=0)
    (held,) = steps.ranked.sets
    assert len(held) == 40
    assert not set(held.groups) & {group for step in steps.batches for group in step.sets[0].groups}


def test_more_minibatches_than_documents_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="every minibatch needs a document of every task"):
        partition(SUITE, whole(20, 3), 4, 0)


def test_a_minibatchs_card_from_columns_of_the_full_split() -> None:
    """The card on a minibatch equals that of scoring the minibatch; columns by request are dropped."""
    batch = whole(20, 14, 9)
    rng = np.random.default_rng(0)
    columns: dict[str, dict[str, Column]] = {
        items.task: {"acc": (rng.random(len(items)) < 0.6) * 1.0, told: rng.random(len(items))}
        for items, told in zip(batch.sets, (EXPECTED, "1-expected", EXPECTED), strict=True)
    }
    columns["a"][LOGLIKELIHOODS] = rng.random(57)
    del columns["c"][EXPECTED]
    minibatches = partition(SUITE, batch, 3, 1)
    for index, minibatch in enumerate(minibatches.batches):
        rows = {
            whole.task: np.isin(whole.doc_ids, own.doc_ids)
            for whole, own in zip(batch.sets, minibatch.sets, strict=True)
        }
        own = {
            task: {name: values[rows[task]] for name, values in known.items() if name != LOGLIKELIHOODS}
            for task, known in columns.items()
        }
        expected, found = make_card(SUITE, minibatch, own, Tokens(), {}), minibatches.card(index, columns)
        assert found.summary() == expected.summary()
    scores = [minibatches.card(index, columns) for index in range(3)]
    everything = make_card(SUITE, batch, columns, Tokens(), {})
    mean = np.average([card.tasks["a"].value for card in scores], weights=[card.tasks["a"].n for card in scores])
    assert mean == pytest.approx(everything.tasks["a"].value)
