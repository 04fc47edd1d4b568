"""Runs of a model and their layout, which maps each token of many sequences to a run. Pure numpy.

This module has two layouts of plain causal rows; `prefix_tree.py` has the one with tree masks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evosearch.evaluation.engine.packing import batches

Tokens = tuple[int, ...]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Run:
    """Tokens of one forward pass: rows of packed subtrees of the trie, or plain causal rows."""

    ids: Ints  # (B, T), 0 where padded
    positions: Ints  # (B, T) positions in the sequence
    ends: Ints | None  # (B, T) ends of subtrees, see `prefix_tree.py`; None for plain causal rows
    prefix_tokens: int  # length of the cached prefix that precedes every row
    is_prefix: bool  # whether later runs continue this run, and need its keys and values
    tokens: int  # number of tokens without padding

    @property
    def padding(self) -> int:
        """Number of padding tokens."""
        return self.ids.size - self.tokens


@dataclass(frozen=True, eq=False)
class Stretch:
    """Location of a contiguous stretch of a sequence: its run, and its places in the run's flattened rows."""

    run: int  # index of the run
    first: int  # position of the stretch's first token in the sequence
    places: Ints  # (tokens,) index of each token in the run's flattened rows


@dataclass(frozen=True, eq=False)
class Layout:
    """Runs in execution order, and the stretches of each sequence in them."""

    runs: tuple[Run, ...]
    stretches: dict[Tokens, tuple[Stretch, ...]]  # in ascending order of `first`


def distinct_prefixes(sequences: Iterable[Tokens]) -> int:
    """Return the number of nodes of the trie: the minimum number of tokens to run."""
    ordered, shared = sort_sequences(sequences)
    return sum(map(len, ordered)) - int(shared.sum())


def depths(sequences: Iterable[Tokens]) -> int:
    """Return the sum of all nodes' depths, counted from 1: the total number of positions attended to."""
    ordered, shared = sort_sequences(sequences)
    lengths = np.array([len(sequence) for sequence in ordered], dtype=np.int64)
    return int((lengths * (lengths + 1) // 2 - shared * (shared + 1) // 2).sum())


def as_rows(tree: Layout, budget: int, cached: int) -> Layout:
    """Keep a tree's shared prefixes, and lay out the rest as plain rows behind them.

    Args:
        tree: A layout from `prefix_tree.as_tree`.
        budget: Maximum of rows × length, padding included.
        cached: Maximum of rows × (prefix + length), since a prefix's keys and values are repeated for every row.
    """
    members: dict[int, list[tuple[Tokens, Stretch]]] = {}
    stretches: dict[Tokens, list[Stretch]] = {sequence: [] for sequence in tree.stretches}
    for sequence, parts in tree.stretches.items():
        for part in parts:
            members.setdefault(part.run, []).append((sequence, part))
    runs: list[Run] = []
    for index, run in enumerate(tree.runs):
        if run.is_prefix:
            plain = Run(run.ids, run.positions, None, run.prefix_tokens, True, run.tokens)
            for sequence, part in members[index]:
                stretches[sequence].append(Stretch(len(runs), part.first, part.places))
            runs.append(plain)
            continue
        row_of = _extensions({sequence[part.first :] for sequence, part in members[index]})
        at: dict[Tokens, tuple[int, int]] = {}  # row → its run and its start in the flattened rows
        longest_first = sorted(set(row_of.values()), key=lambda row: (-len(row), row))
        for batch in batches(longest_first, budget, cached, run.prefix_tokens):
            at.update((row, (len(runs), number * len(batch[0]))) for number, row in enumerate(batch))
            runs.append(_rows(batch, run.prefix_tokens))
        for sequence, part in members[index]:
            rest = sequence[part.first :]
            own, start = at[row_of[rest]]
            stretches[sequence].append(Stretch(own, part.first, start + np.arange(len(rest))))
    return Layout(tuple(runs), {sequence: tuple(parts) for sequence, parts in stretches.items()})


def by_length(sequences: Iterable[Tokens], budget: int) -> Layout:
    """Lay out each distinct sequence as its own row, in runs of equal length: for models that depend on length."""
    lengths: dict[int, list[Tokens]] = {}
    for sequence in sorted(set(sequences)):
        lengths.setdefault(len(sequence), []).append(sequence)
    runs: list[Run] = []
    stretches: dict[Tokens, tuple[Stretch, ...]] = {}
    for length in sorted(lengths, reverse=True):
        rows = max(budget // length, 1)
        for start in range(0, len(lengths[length]), rows):
            batch = lengths[length][start : start + rows]
            for row, sequence in enumerate(batch):
                stretches[sequence] = (Stretch(len(runs), 0, row * length + np.arange(length)),)
            runs.append(_rows(batch, 0))
    return Layout(tuple(runs), stretches)


def sort_sequences(sequences: Iterable[Tokens]) -> tuple[list[Tokens], Ints]:
    """Return the sorted distinct sequences, and the number of tokens that each shares with its predecessor."""
    ordered = sorted(set(sequences))
    arrays = [np.array(sequence, dtype=np.int64) for sequence in ordered]
    shared = np.zeros(len(ordered), dtype=np.int64)
    for index in range(1, len(ordered)):
        one, other = arrays[index - 1], arrays[index]
        size = min(one.size, other.size)
        differ = one[:size] != other[:size]
        shared[index] = int(differ.argmax()) if differ.any() else size
    return ordered, shared


def _extensions(sequences: Iterable[Tokens]) -> dict[Tokens, Tokens]:
    """Each sequence → the longest one it is a prefix of; with causal attention, that row includes its states."""
    row_of: dict[Tokens, Tokens] = {}
    after: Tokens = ()
    for sequence in sorted(sequences, reverse=True):  # a sequence follows those that it is a prefix of
        row_of[sequence] = row_of[after] if after[: len(sequence)] == sequence else sequence
        after = sequence
    return row_of


def _rows(batch: Sequence[Tokens], prefix: int) -> Run:
    width = len(batch[0])
    ids = np.zeros((len(batch), width), dtype=np.int64)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = sequence
    positions = np.broadcast_to(prefix + np.arange(width), ids.shape)
    return Run(ids, positions, None, prefix, False, sum(map(len, batch)))
