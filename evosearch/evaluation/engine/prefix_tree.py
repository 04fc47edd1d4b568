"""Token sequences as a trie, and the trie as runs of a model: each distinct prefix once. Pure numpy.

Sequences that begin alike share the nodes of their common beginning. A trie larger than one run is cut from its root
on: the tokens that a group of sequences shares (few-shot examples, an instruction) are a run of their own, whose keys
and values the group's later runs find in the cache; what is left of the group is packed, whole subtrees at a time, into
the rows of further runs. In such a row a node sees the path that leads to it and nothing of its neighbours:

    node i sees node j  ⟺  j ≤ i < ends[j]         nodes in depth-first order, ends[j] the end of j's subtree

and its position is its depth. The same sequences can also be laid out as plain rows, for models that take no such mask.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evosearch.evaluation.engine.packing import arrange, batches

Tokens = tuple[int, ...]
Ints = NDArray[np.int64]

_TWICE = 0.015  # of the nodes of a subtree may be run again, to cut it in pieces
_BESIDE = 128  # nodes of a subtree beside its longest path: attention computes their pairs for nothing
_WIDE, _NARROWER = 512, 4  # a row of several pieces has at most so many nodes, or a quarter of the budget


@dataclass(frozen=True, eq=False)
class Run:
    """Tokens that go through the model together: rows of pieces of the trie, or plain causal rows."""

    ids: Ints  # (B, T), 0 where padded
    positions: Ints  # (B, T) places in the sequence
    ends: Ints | None  # (B, T) of pieces of the trie; None: rows in which each token sees all before it
    keep: int  # tokens before these, in the cache: the same for every row
    kept: bool  # later runs need its keys and values
    tokens: int  # without padding

    @property
    def padding(self) -> int:
        return self.ids.size - self.tokens


@dataclass(frozen=True, eq=False)
class Stretch:
    """Where a part of a sequence is run: its tokens from `first` on are at `places` of the run's flattened rows."""

    run: int
    first: int
    places: Ints  # (tokens of this part,)


@dataclass(frozen=True, eq=False)
class Layout:
    """Runs in order, and where to find each sequence in them."""

    runs: tuple[Run, ...]
    stretches: dict[Tokens, tuple[Stretch, ...]]  # by rising `first`


def distinct_prefixes(sequences: Iterable[Tokens]) -> int:
    """Nodes of the trie: how many tokens must be run at least."""
    ordered, shared = _sorted(sequences)
    return sum(map(len, ordered)) - int(shared.sum())


def depths(sequences: Iterable[Tokens]) -> int:
    """The sum of all nodes' depths, the first token's being 1: how many positions they attend to, all together."""
    ordered, shared = _sorted(sequences)
    lengths = np.array([len(sequence) for sequence in ordered], dtype=np.int64)
    return int((lengths * (lengths + 1) // 2 - shared * (shared + 1) // 2).sum())


def as_tree(
    sequences: Iterable[Tokens],
    budget: int,
    leaves: int | None = None,
    beside: int | None = None,
    wide: int | None = None,
) -> Layout:
    """Every node once, in runs of at most `budget` tokens, padding not counted.

    A short beginning that many sequences share is repeated where a run of its own would cost more: nodes run twice and
    padding together are at most a twentieth of all.

    Args:
        leaves: sequences that end in one run, at most. Where it is given, every sequence ends in a run that is not
            kept, its last token being run a second time where it is part of what others share.
        beside: nodes that the longest path of a subtree may have beside it in its row; None: as many as cost little.
        wide: nodes of a row of several subtrees, at most; what would be wider becomes several runs. None: as many as
            cost little.
    """
    return _Grower(sequences, budget, leaves, beside, wide).grow()


def as_rows(tree: Layout, budget: int, cached: int) -> Layout:
    """A tree's shared prefixes as they are, the rest as plain rows behind them; rows share nothing with each other.

    Args:
        tree: from `as_tree`.
        budget: rows × length, padding included.
        cached: rows × (kept tokens + length): the prefix's keys and values are repeated for every row.
    """
    members: dict[int, list[tuple[Tokens, Stretch]]] = {}
    stretches: dict[Tokens, list[Stretch]] = {sequence: [] for sequence in tree.stretches}
    for sequence, parts in tree.stretches.items():
        for part in parts:
            members.setdefault(part.run, []).append((sequence, part))
    runs: list[Run] = []
    for index, run in enumerate(tree.runs):
        if run.kept:
            plain = Run(run.ids, run.positions, None, run.keep, True, run.tokens)
            for sequence, part in members[index]:
                stretches[sequence].append(Stretch(len(runs), part.first, part.places))
            runs.append(plain)
            continue
        row_of = _begun({sequence[part.first :] for sequence, part in members[index]})
        at: dict[Tokens, tuple[int, int]] = {}  # row → its run and where it begins in the flattened rows
        for batch in batches(sorted(set(row_of.values()), key=lambda row: (-len(row), row)), budget, cached, run.keep):
            at.update((row, (len(runs), number * len(batch[0]))) for number, row in enumerate(batch))
            runs.append(_rows(batch, run.keep))
        for sequence, part in members[index]:
            rest = sequence[part.first :]
            own, start = at[row_of[rest]]
            stretches[sequence].append(Stretch(own, part.first, start + np.arange(len(rest))))
    return Layout(tuple(runs), {sequence: tuple(parts) for sequence, parts in stretches.items()})


def by_length(sequences: Iterable[Tokens], budget: int) -> Layout:
    """Each distinct sequence whole, in rows of one length: what a model sees that knows how long its input is."""
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


class _Grower:
    """Cuts a trie into runs; sequences are sorted, so a subtree is a range of them."""

    def __init__(
        self,
        sequences: Iterable[Tokens],
        budget: int,
        leaves: int | None = None,
        beside: int | None = None,
        wide: int | None = None,
    ) -> None:
        assert budget > 0
        self.wide = max(_WIDE, budget // _NARROWER) if wide is None else wide
        self.beside = _BESIDE if beside is None else beside
        self.budget, self.leaves = budget, leaves
        self.ordered, self.shared = _sorted(sequences)
        self.lengths = np.array([len(sequence) for sequence in self.ordered], dtype=np.int64)
        self.nodes_before = np.concatenate([[0], np.cumsum(self.lengths - self.shared)])  # added by those before i
        self.runs: list[Run] = []
        self.stretches: list[list[Stretch]] = [[] for _ in self.ordered]

    def grow(self) -> Layout:
        pending = [(0, len(self.ordered), 0)] if self.ordered else []
        while pending:
            low, high, depth = pending.pop()
            if self.leaves is not None and len(self.ordered[low]) == depth + 1:
                self._pack([(low, low + 1)], depth)  # it begins all the others, and is to end in a run of its own
                low += 1
            if low == high:
                continue
            if depth or self._cut(low, high, depth) is None:
                depth = self._chain(low, high, depth)
            large = self._children(low, high, depth)
            pending.extend((*group, depth) for group in reversed(large))
        stretches = zip(self.ordered, self.stretches, strict=True)
        return Layout(tuple(self.runs), {sequence: tuple(parts) for sequence, parts in stretches})

    def _whole(self, low: int, high: int, depth: int) -> bool:
        """Whether the sequences from low to high, which share what is above `depth`, can stand in one row.

        They must fit in a run, and be mostly one path: what is beside it is attended to for nothing.
        """
        nodes = self._nodes(low, high, depth)
        beside = nodes - (int(self.lengths[low:high].max()) - depth)
        return self._fits(nodes, high - low) and beside <= self.beside

    def _fits(self, nodes: int, leaves: int) -> bool:
        return nodes <= self.budget and (self.leaves is None or leaves <= self.leaves)

    def _nodes(self, low: int, high: int, depth: int) -> int:
        """Nodes below `depth` of the sequences from low to high, which share what is above."""
        return len(self.ordered[low]) - depth + int(self.nodes_before[high] - self.nodes_before[low + 1])

    def _chain(self, low: int, high: int, depth: int) -> int:
        """Run what the whole range shares, to be kept; returns how deep that is."""
        end = min(int(self.shared[low + 1 : high].min(initial=len(self.ordered[low]))), len(self.ordered[low]))
        if self.leaves is not None:
            end = min(end, len(self.ordered[low]) - 1)  # the shortest sequence ends below
        for start in range(depth, end, self.budget):
            stop = min(start + self.budget, end)
            size = stop - start
            positions = np.arange(start, stop)
            ids = np.array(self.ordered[low][start:stop], dtype=np.int64)
            stretch = Stretch(len(self.runs), start, np.arange(size))
            self.runs.append(Run(ids[None], positions[None], np.full((1, size), size), start, True, size))
            for index in range(low, high):
                self.stretches[index].append(stretch)
        return max(end, depth)

    def _children(self, low: int, high: int, depth: int) -> list[tuple[int, int]]:
        """Pack the subtrees below `depth` into runs, whole or in pieces; returns those that are neither."""
        large: list[tuple[int, int]] = []
        packed: list[tuple[int, int]] = []
        nodes, leaves = 0, 0
        for group in self._groups(low, high, depth):
            pieces = self._cut(*group, depth)
            if pieces is None:
                large.append(group)
                continue
            for first, last in pieces:
                size = self._nodes(first, last, depth)
                if packed and not self._fits(nodes + size, leaves + last - first):
                    self._pack(packed, depth)
                    packed, nodes, leaves = [], 0, 0
                packed.append((first, last))
                nodes, leaves = nodes + size, leaves + last - first
        if packed:
            self._pack(packed, depth)
        return large

    def _cut(self, low: int, high: int, depth: int) -> list[tuple[int, int]] | None:
        """Ranges that can each stand in a row, or None where cutting would run too much twice.

        What the sequences around a cut share is run on both sides of it.
        """
        allowed = _TWICE * self._nodes(low, high, depth)
        pieces, first, last = [], low, low
        while last < high:
            last += 1
            if not self._whole(first, last, depth):
                if last - first == 1:
                    return None  # a sequence longer than a run
                cut = self._best_cut(first, last, depth)
                allowed -= int(self.shared[cut]) - depth
                if allowed < 0:
                    return None
                pieces.append((first, cut))
                first = last = cut
        return [*pieces, (first, high)]

    def _best_cut(self, first: int, last: int, depth: int) -> int:
        """Where a range that is one sequence too long is cut: little is run twice, and little room is left unused."""
        full = self._nodes(first, last - 1, depth)
        best, cost = last - 1, int(self.shared[last - 1]) - depth
        for cut in range(last - 2, first, -1):
            unused = full - self._nodes(first, cut, depth)
            if unused >= cost:
                break
            own = unused + int(self.shared[cut]) - depth
            if own < cost:
                best, cost = cut, own
        return best

    def _groups(self, low: int, high: int, depth: int) -> Iterator[tuple[int, int]]:
        """Ranges of sequences that go on alike below `depth`; one that ends there is in none of them."""
        first = low
        while first < high and len(self.ordered[first]) <= depth:
            first += 1
        for index in range(first + 1, high + 1):
            if index == high or self.shared[index] <= depth:
                yield first, index
                first = index

    def _pack(self, ranges: Sequence[tuple[int, int]], depth: int) -> None:
        """Whole subtrees in as few runs as their sizes allow, each in one row, depth first."""
        pieces = [self._subtree(first, last, depth) for first, last in ranges]
        for rows in arrange([len(piece.ids) for piece in pieces], depth, self.wide):
            self._run([[pieces[index] for index in row] for row in rows], depth)

    def _run(self, rows: Sequence[Sequence["_Piece"]], depth: int) -> None:
        width = max(sum(len(piece.ids) for piece in row) for row in rows)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.full((len(rows), width), depth, dtype=np.int64)
        ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding is seen by itself alone
        for number, row in enumerate(rows):
            start = 0
            for piece in row:
                stop = start + len(piece.ids)
                ids[number, start:stop], positions[number, start:stop] = piece.ids, piece.positions
                ends[number, start:stop] = start + _ends(piece.positions)
                for sequence, path in piece.paths.items():
                    places = number * width + start + path
                    self.stretches[sequence].append(Stretch(len(self.runs), depth, places))
                start = stop
        tokens = sum(len(piece.ids) for row in rows for piece in row)
        self.runs.append(Run(ids, positions, ends, depth, False, tokens))

    def _subtree(self, first: int, last: int, depth: int) -> "_Piece":
        """The nodes below `depth` of a range of sequences, depth first."""
        piece, path = _Piece(), np.empty(0, dtype=np.int64)
        for index in range(first, last):
            sequence = self.ordered[index]
            start = depth if index == first else max(int(self.shared[index]), depth)
            new = np.arange(len(piece.ids), len(piece.ids) + len(sequence) - start)
            path = np.concatenate([path[: start - depth], new])
            piece.ids.extend(sequence[start:])
            piece.positions.extend(range(start, len(sequence)))
            piece.paths[index] = path
        return piece


@dataclass
class _Piece:
    """A subtree that stays in one row."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    paths: dict[int, Ints] = field(default_factory=dict)  # index of a sequence → its nodes


def _sorted(sequences: Iterable[Tokens]) -> tuple[list[Tokens], Ints]:
    """The distinct sequences in order, and how many tokens each shares with the one before."""
    ordered = sorted(set(sequences))
    arrays = [np.array(sequence, dtype=np.int64) for sequence in ordered]
    shared = np.zeros(len(ordered), dtype=np.int64)
    for index in range(1, len(ordered)):
        one, other = arrays[index - 1], arrays[index]
        size = min(one.size, other.size)
        differ = one[:size] != other[:size]
        shared[index] = int(differ.argmax()) if differ.any() else size
    return ordered, shared


def _ends(positions: Sequence[int]) -> Ints:
    """Depth-first nodes by their depth → where the subtree of each ends."""
    ends = np.full(len(positions), len(positions), dtype=np.int64)
    open_: list[int] = []
    for index, depth in enumerate(positions):
        while open_ and positions[open_[-1]] >= depth:
            ends[open_.pop()] = index
        open_.append(index)
    return ends


def _begun(sequences: Iterable[Tokens]) -> dict[Tokens, Tokens]:
    """Each sequence → the longest one that it begins: attention is causal, so that row holds its hidden states too."""
    row_of: dict[Tokens, Tokens] = {}
    after: Tokens = ()
    for sequence in sorted(sequences, reverse=True):  # a sequence stands right before those it begins
        row_of[sequence] = row_of[after] if after[: len(sequence)] == sequence else sequence
        after = sequence
    return row_of


def _rows(batch: Sequence[Tokens], keep: int) -> Run:
    width = len(batch[0])
    ids = np.zeros((len(batch), width), dtype=np.int64)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = sequence
    positions = np.broadcast_to(keep + np.arange(width), ids.shape)
    return Run(ids, positions, None, keep, False, sum(map(len, batch)))
