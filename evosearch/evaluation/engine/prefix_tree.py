"""Token sequences as a trie, laid out so that each distinct prefix runs once. Pure numpy.

Sequences with a common prefix share its nodes. A trie that is larger than one run is cut from its root downwards: the
tokens that a group of sequences shares (few-shot examples, an instruction) become a run of their own, whose keys and
values later runs of the group find in the cache; the rest of the group is packed, in complete subtrees, into the rows
of further runs. Within a row, a node attends to its path only:

    node i sees node j  ⟺  j ≤ i < ends[j]         nodes in depth-first order, ends[j] the end of j's subtree

and its position is its depth.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from evosearch.evaluation.engine.packing import arrange
from evosearch.evaluation.engine.runs import Ints, Layout, Run, Stretch, Tokens, sort_sequences

_TWICE = 0.015  # fraction of a subtree's nodes that may run twice in order to cut it into pieces
_OFF_PATH = 128  # maximum nodes of a subtree outside its longest path, as attention between branches is wasted
_WIDE, _NARROWER = 512, 4  # a row of several pieces has at most 512 nodes or a quarter of the budget, if that is more


def as_tree(
    sequences: Iterable[Tokens],
    budget: int,
    leaves: int | None = None,
    off_path: int | None = None,
    wide: int | None = None,
) -> Layout:
    """Lay out sequences so that each node of their trie runs once.

    A short shared prefix is repeated if a run of its own would cost more; repeated nodes and padding together are at
    most 1/20 of all tokens.

    Args:
        sequences: The sequences; equal ones are laid out once.
        budget: Maximum tokens of a run, padding not counted.
        leaves: Maximum number of sequences that end in one run. If set, no sequence ends in a prefix run: if its last
            token is part of a shared prefix, that token runs a second time.
        off_path: Maximum number of nodes outside the longest path of a subtree in its row; None for the default.
        wide: Maximum number of nodes of a row of several subtrees; wider ones become several runs. None for the
            default.
    """
    return _LayoutBuilder(sequences, budget, leaves, off_path, wide).build()


class _LayoutBuilder:
    """Cuts a trie into runs. Sequences are sorted, so a subtree is a range of them."""

    def __init__(
        self,
        sequences: Iterable[Tokens],
        budget: int,
        leaves: int | None = None,
        off_path: int | None = None,
        wide: int | None = None,
    ) -> None:
        assert budget > 0
        self.wide = max(_WIDE, budget // _NARROWER) if wide is None else wide
        self.off_path = _OFF_PATH if off_path is None else off_path
        self.budget, self.leaves = budget, leaves
        self.ordered, self.shared = sort_sequences(sequences)
        self.lengths = np.array([len(sequence) for sequence in self.ordered], dtype=np.int64)
        self.nodes_before = np.concatenate(
            [[0], np.cumsum(self.lengths - self.shared)]
        )  # new nodes of the sequences before i
        self.runs: list[Run] = []
        self.stretches: list[list[Stretch]] = [[] for _ in self.ordered]

    def build(self) -> Layout:
        """Return the layout."""
        pending = [(0, len(self.ordered), 0)] if self.ordered else []
        while pending:
            low, high, depth = pending.pop()
            if self.leaves is not None and len(self.ordered[low]) == depth + 1:
                self._pack([(low, low + 1)], depth)  # a prefix of all others, which must not end in a prefix run
                low += 1
            if low == high:
                continue
            if depth or self._cut(low, high, depth) is None:
                depth = self._chain(low, high, depth)
            large = self._children(low, high, depth)
            pending.extend((*group, depth) for group in reversed(large))
        stretches = zip(self.ordered, self.stretches, strict=True)
        return Layout(tuple(self.runs), {sequence: tuple(parts) for sequence, parts in stretches})

    def _fits_row(self, low: int, high: int, depth: int) -> bool:
        """Whether the sequences from low to high, which share everything above `depth`, can form one row.

        They must fit into a run and consist mostly of one path, since attention between branches is wasted.
        """
        nodes = self._nodes(low, high, depth)
        off_path = nodes - (int(self.lengths[low:high].max()) - depth)
        return self._fits(nodes, high - low) and off_path <= self.off_path

    def _fits(self, nodes: int, leaves: int) -> bool:
        return nodes <= self.budget and (self.leaves is None or leaves <= self.leaves)

    def _nodes(self, low: int, high: int, depth: int) -> int:
        """Number of nodes below `depth` of the sequences from low to high, which share everything above it."""
        return len(self.ordered[low]) - depth + int(self.nodes_before[high] - self.nodes_before[low + 1])

    def _chain(self, low: int, high: int, depth: int) -> int:
        """Add prefix runs for the tokens that all sequences of the range share; return their depth."""
        end = min(int(self.shared[low + 1 : high].min(initial=len(self.ordered[low]))), len(self.ordered[low]))
        if self.leaves is not None:
            end = min(end, len(self.ordered[low]) - 1)  # the shortest sequence must end below
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
        """Pack the subtrees below `depth` into runs, complete or in pieces; return those that are too large."""
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
        """Cut a range into ranges that each form a row; None if that would repeat too many nodes.

        The common prefix of the sequences around a cut runs on both sides of it.
        """
        allowed = _TWICE * self._nodes(low, high, depth)
        pieces, first, last = [], low, low
        while last < high:
            last += 1
            if not self._fits_row(first, last, depth):
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
        """Best cut of a range that is one sequence too long, weighing repeated nodes against unused space."""
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
        """Ranges of sequences with the same next token below `depth`, without a sequence that ends there."""
        first = low
        while first < high and len(self.ordered[first]) <= depth:
            first += 1
        for index in range(first + 1, high + 1):
            if index == high or self.shared[index] <= depth:
                yield first, index
                first = index

    def _pack(self, ranges: Sequence[tuple[int, int]], depth: int) -> None:
        """Pack subtrees into as few runs as their sizes allow, each within one row, depth first."""
        pieces = [self._subtree(first, last, depth) for first, last in ranges]
        for rows in arrange([len(piece.ids) for piece in pieces], depth, self.wide):
            self._run([[pieces[index] for index in row] for row in rows], depth)

    def _run(self, rows: Sequence[Sequence["_Piece"]], depth: int) -> None:
        width = max(sum(len(piece.ids) for piece in row) for row in rows)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.full((len(rows), width), depth, dtype=np.int64)
        ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding sees only itself
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
        """Nodes below `depth` of a range of sequences, depth first."""
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
    """A subtree within one row."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    paths: dict[int, Ints] = field(default_factory=dict)  # index of a sequence → its nodes in this piece


def _ends(positions: Sequence[int]) -> Ints:
    """(nodes,) end of each node's subtree, from the depths of nodes in depth-first order."""
    ends = np.full(len(positions), len(positions), dtype=np.int64)
    open_: list[int] = []
    for index, depth in enumerate(positions):
        while open_ and positions[open_[-1]] >= depth:
            ends[open_.pop()] = index
        open_.append(index)
    return ends
