"""One split's items in minibatches of equal size, for searches that score each generation on one of them. Pure.

The documents of each task are ordered by sha256(seed, document hash) and dealt out in turn, so minibatches are disjoint, hold
the whole split together, and follow from nothing but the seed and the documents. As minibatches are fixed, each is frozen and
tokenized once, like any batch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evosearch.evaluation.statistics.scores import make_card
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import GOLD, Column, ItemBatch, ItemSet, ScoreCard, Tokens


@dataclass(frozen=True)
class Minibatches:
    """The items of a split, whole and in minibatches."""

    suite: Suite
    whole: ItemBatch
    batches: tuple[ItemBatch, ...]

    def card(self, minibatch: int, columns: Mapping[str, Mapping[str, Column]]) -> ScoreCard:
        """What a minibatch alone says of somebody who was scored on the whole split.

        Args:
            columns: task → column → values, on the whole split.
        """
        needed = {task.name: (task.metric, GOLD) for task in (*self.suite.scoring, *self.suite.guarded)}
        taken: dict[str, dict[str, Column]] = {}
        for whole, own in zip(self.whole.sets, self.batches[minibatch].sets, strict=True):
            places = {doc_id: index for index, doc_id in enumerate(whole.doc_ids)}
            rows = [places[doc_id] for doc_id in own.doc_ids]
            known = columns.get(whole.task, {})
            taken[whole.task] = {name: known[name][rows] for name in needed.get(whole.task, ()) if name in known}
        return make_card(self.suite, self.batches[minibatch], taken, Tokens(), {})


def partition(suite: Suite, whole: ItemBatch, count: int, seed: int) -> Minibatches:
    """A split in `count` minibatches, whose numbers of documents of any one task differ by one at most."""
    assert all(len(items) >= count for items in whole.sets), "every minibatch has a document of every task"
    dealt = [_deal(items, count, seed) for items in whole.sets]  # (tasks, minibatches)
    return Minibatches(suite, whole, tuple(ItemBatch(whole.split, sets) for sets in zip(*dealt, strict=True)))


def _deal(items: ItemSet, count: int, seed: int) -> list[ItemSet]:
    order = sorted(range(len(items)), key=lambda index: _key(seed, items.doc_hashes[index]))
    return [_taken(items, sorted(order[minibatch::count])) for minibatch in range(count)]


def _key(seed: int, doc_hash: str) -> bytes:
    return hashlib.sha256(f"minibatches:{seed}:{doc_hash}".encode()).digest()


def _taken(items: ItemSet, indices: Sequence[int]) -> ItemSet:
    groups = tuple(items.groups[index] for index in indices) if items.groups else ()
    doc_ids = tuple(items.doc_ids[index] for index in indices)
    doc_hashes = tuple(items.doc_hashes[index] for index in indices)
    return replace(items, doc_ids=doc_ids, doc_hashes=doc_hashes, groups=groups)
