"""Minibatches of gradient steps: which documents of the search split a step sees. Pure.

    order       the documents of each task, by sha256(seed, document hash)
    held back   the first documents of each task, on which models are compared and that are in no minibatch; whole
                groups of linked documents, in the order of their first, the last of which may exceed the share
    minibatch i documents i·b to (i+1)·b of the rest of each task, starting again at its end; b = `documents` / tasks
    shard s     every S-th document of a minibatch, from the s-th; S = `shards`

Every minibatch has the same number of documents of each task (all of them, if a task has fewer than b), so that a large
task has more minibatches and a small one is seen more often. Shards of one minibatch are differentiated separately,
with weights by which their gradients sum to the minibatch's.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evosearch.evaluation.statistics.minibatches import Minibatches, taken
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import ItemBatch, ItemSet

LEAST_HELD_BACK = 10  # documents of each task that scores; with fewer, their noise would decide when to stop
MOST_HELD_BACK = 160  # documents in all; with more, their scoring would take much of a budget


@dataclass(frozen=True)
class GradientSteps(Minibatches):
    """The minibatches of gradient steps.

    `batches` has the shards of minibatch i at i·`shards`.

    Attributes:
        count: Number of minibatches, used in rotation.
        shards: Number of shards of each.
        sizes: (minibatches,) task → number of documents in the minibatch.
        held_back: The part of the split that is in no minibatch; None if nothing is held back.
    """

    count: int
    shards: int
    sizes: tuple[Mapping[str, int], ...]
    held_back: ItemBatch | None

    @property
    def ranked(self) -> ItemBatch:
        """The items that models are compared on: the held-back part, or else the full split."""
        return self.held_back or self.full

    def weights(self, minibatch: int) -> Mapping[str, float]:
        """Return the weight of each document of a task: v_t = w_t / n_t, with n_t documents in all shards together."""
        step = minibatch // self.shards
        weights = {task.name: task.weight for task in self.suite.tasks if not task.report_only}
        total = sum(weights[task] for task in self.sizes[step])
        return {task: weights[task] / total / size for task, size in self.sizes[step].items()}


def gradient_steps(
    suite: Suite, full: ItemBatch, documents: int, shards: int, hold_back: float, seed: int
) -> GradientSteps:
    """Divide a split into the minibatches of gradient steps.

    Args:
        suite: The suite.
        full: The split.
        documents: Documents in a minibatch, of all tasks that score; at least one of each.
        shards: Number of shards of a minibatch; at most its documents are used.
        hold_back: Share of each task's documents that is held back; nothing is, if it is 0 or less than
            `LEAST_HELD_BACK` documents of a task that scores; of all together no more than `MOST_HELD_BACK`, in equal
            numbers, or the least.
        seed: Seed of the order.
    """
    scored = {task.name for task in suite.tasks if not task.report_only}
    orders = {items.task: _order(items, seed) for items in full.sets}
    held = _held_back(full, orders, hold_back, scored) if hold_back else {}
    rest = {task: [index for index in order if index not in held.get(task, set())] for task, order in orders.items()}
    sets = [items for items in full.sets if items.task in scored and len(items)]
    each = max(1, documents // len(sets))
    count = max(math.ceil(len(rest[items.task]) / each) for items in sets)
    steps = [[(items, _slice(rest[items.task], step * each, each)) for items in sets] for step in range(count)]
    batches = [shard for step in steps for shard in _shards(full.split, step, shards)]
    parts = tuple(taken(items, sorted(held[items.task])) for items in full.sets) if held else ()
    sizes = tuple({items.task: len(indices) for items, indices in step} for step in steps)
    held_back = ItemBatch(full.split, parts) if held else None
    return GradientSteps(suite, full, tuple(batches), count, shards, sizes, held_back)


def _order(items: ItemSet, seed: int) -> list[int]:
    def key(index: int) -> bytes:
        return hashlib.sha256(f"steps:{seed}:{items.doc_hashes[index]}".encode()).digest()

    return sorted(range(len(items)), key=key)


def _held_back(
    full: ItemBatch, orders: Mapping[str, list[int]], share: float, scored: Collection[str]
) -> dict[str, set[int]]:
    """Return task → indices of the held-back documents, or nothing if they would be too few, or all."""
    most = max(LEAST_HELD_BACK, MOST_HELD_BACK // max(1, len(scored)))
    wanted = {items.task: min(most, max(1, int(share * len(items)))) for items in full.sets if len(items)}
    found = {items.task: _whole_groups(items, orders[items.task], wanted.get(items.task, 0)) for items in full.sets}
    sets = [items for items in full.sets if items.task in scored and len(items)]
    if all(LEAST_HELD_BACK <= len(found[items.task]) < len(items) for items in sets):
        return found
    return {}


def _whole_groups(items: ItemSet, order: Sequence[int], wanted: int) -> set[int]:
    """Return the first `wanted` documents; of linked ones whole groups, until there are at least `wanted`."""
    if not items.groups:
        return set(order[:wanted])
    linked: dict[str, set[int]] = {}
    for index in order:
        linked.setdefault(items.groups[index], set()).add(index)
    found = set[int]()
    for group in linked.values():
        if len(found) >= wanted:
            break
        found |= group
    return found


def _slice(order: Sequence[int], start: int, count: int) -> list[int]:
    """Return `count` entries from `start` on, starting again at the end; none twice."""
    return sorted(order[(start + offset) % len(order)] for offset in range(min(count, len(order))))


def _shards(split: str, step: Sequence[tuple[ItemSet, Sequence[int]]], shards: int) -> list[ItemBatch]:
    """Deal the documents of a minibatch, so that the sizes of its shards differ by at most one."""
    dealt: list[list[ItemSet]] = [[] for _ in range(shards)]
    first = 0  # shard that gets the next document
    for items, indices in step:
        for shard in range(shards):
            own = indices[(shard - first) % shards :: shards]
            if own:
                dealt[shard].append(taken(items, own))
        first = (first + len(indices)) % shards
    return [ItemBatch(split, tuple(sets)) for sets in dealt]
