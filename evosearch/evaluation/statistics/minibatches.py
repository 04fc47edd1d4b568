"""Minibatches: equal subsets of a split, for searches that score each generation on one of them. Pure.

The documents of each task are ordered by sha256(seed, document hash) and assigned in turn, so minibatches are disjoint,
cover the split, and depend only on the seed and the documents. Since they are fixed, each is frozen and tokenized once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evosearch.evaluation.statistics.fitness import told_column
from evosearch.evaluation.statistics.scores import make_card
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import Column, ItemBatch, ItemSet, ScoreCard, Tokens


@dataclass(frozen=True)
class Minibatches:
    """A split and its minibatches."""

    suite: Suite
    full: ItemBatch  # the full split
    batches: tuple[ItemBatch, ...]  # the minibatches

    def weights(self, minibatch: int) -> Mapping[str, float] | None:
        """Return None: a gradient on one of these minibatches would weigh tasks as the suite does."""
        return None

    def card(self, minibatch: int, columns: Mapping[str, Mapping[str, Column]]) -> ScoreCard:
        """Return a candidate's score card on one minibatch, from its scores on the full split.

        Args:
            minibatch: Index of the minibatch.
            columns: Task → column → values, on the full split.
        """
        needed = {task.name: {task.metric} for task in (*self.suite.fitted, *self.suite.guarded)}
        for task in self.suite.fitted:
            needed[task.name].add(told_column(self.suite.told, task))
        taken: dict[str, dict[str, Column]] = {}
        for full, own in zip(self.full.sets, self.batches[minibatch].sets, strict=True):
            index_of = {doc_id: index for index, doc_id in enumerate(full.doc_ids)}
            rows = [index_of[doc_id] for doc_id in own.doc_ids]
            known = columns.get(full.task, {})
            taken[full.task] = {name: known[name][rows] for name in needed.get(full.task, ()) if name in known}
        return make_card(self.suite, self.batches[minibatch], taken, Tokens(), {})


def partition(suite: Suite, full: ItemBatch, count: int, seed: int) -> Minibatches:
    """Partition a split into `count` minibatches, whose numbers of documents per task differ by at most one."""
    assert all(len(items) >= count for items in full.sets), "every minibatch needs a document of every task"
    dealt = [_deal(items, count, seed) for items in full.sets]  # (tasks, minibatches)
    return Minibatches(suite, full, tuple(ItemBatch(full.split, sets) for sets in zip(*dealt, strict=True)))


def _deal(items: ItemSet, count: int, seed: int) -> list[ItemSet]:
    order = sorted(range(len(items)), key=lambda index: _key(seed, items.doc_hashes[index]))
    return [taken(items, sorted(order[minibatch::count])) for minibatch in range(count)]


def _key(seed: int, doc_hash: str) -> bytes:
    return hashlib.sha256(f"minibatches:{seed}:{doc_hash}".encode()).digest()


def taken(items: ItemSet, indices: Sequence[int]) -> ItemSet:
    """Return the documents at `indices`, which are sorted."""
    groups = tuple(items.groups[index] for index in indices) if items.groups else ()
    doc_ids = tuple(items.doc_ids[index] for index in indices)
    doc_hashes = tuple(items.doc_hashes[index] for index in indices)
    return replace(items, doc_ids=doc_ids, doc_hashes=doc_hashes, groups=groups)
