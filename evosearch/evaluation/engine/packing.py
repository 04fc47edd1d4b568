"""Packing of pieces of different lengths into rows of similar length, with little padding. Pure."""

from collections.abc import Iterator, Sequence
from heapq import heapreplace

_WASTE = 0.25  # fraction of padding allowed in a batch of plain rows
_SMALL = 16  # a batch below 1/16 of the budget accepts any row, since another run costs more than the padding
_PADDING = 0.034  # fraction of padding allowed in a run of the trie; with repeated nodes, at most 1/20
_REPEATED = 2  # a cached prefix repeated for every row may be this many times the run's own tokens; bounds memory


def arrange(sizes: Sequence[int], prefix: int, wide: int) -> list[list[list[int]]]:
    """Arrange pieces in rows, and rows in runs: few runs of short rows, within limits on padding and repeated cache.

    All pieces form one run if its rows can be balanced, by giving the longest remaining piece to the shortest row
    (Graham 1969). Otherwise pieces of similar size form runs with one piece per row, or runs of a single row.

    Args:
        sizes: Length of each piece.
        prefix: Length of the cached prefix that is repeated for every row.
        wide: Maximum width of a row of several pieces.

    Returns:
        Runs, each a list of rows, each a list of indices of pieces.
    """
    total, order = sum(sizes), sorted(range(len(sizes)), key=lambda index: -sizes[index])
    for count in range(len(sizes), 0, -1):
        rows = _balance(sizes, order, count)
        width = max(sum(sizes[index] for index in row) for row in rows)
        if width > max(wide, sizes[order[0]]):
            break  # fewer rows would be even wider
        padding = count * width - total
        if count == 1 or (padding <= _PADDING * total and count * prefix <= _REPEATED * total):
            return [rows]
    runs: list[list[list[int]]] = [[]]
    filled = 0  # tokens of the current run
    for index in order:
        size, run = sizes[index], runs[-1]
        padding = (len(run) + 1) * sizes[run[0][0]] - filled - size if run and len(run[0]) == 1 else total
        if run and padding <= _PADDING * (filled + size) and (len(run) + 1) * prefix <= _REPEATED * (filled + size):
            run.append([index])
        elif len(run) == 1 and filled + size <= wide:
            run[0].append(index)
        else:
            filled = 0
            runs.append([[index]])
        filled += size
    return [run for run in runs if run]


def _balance(sizes: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """Pieces, longest first, in `count` rows of similar length."""
    rows: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for index in order:
        load, number = loads[0]
        rows[number].append(index)
        heapreplace(loads, (load + sizes[index], number))
    return rows


def batches(rows: Sequence[tuple[int, ...]], budget: int, cached: int, prefix: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield batches of rows, longest first, split where the next row would exceed a budget or be mostly padding.

    Args:
        rows: Token rows, longest first.
        budget: Maximum of rows × length.
        cached: Maximum of rows × (prefix + length).
        prefix: Length of the cached prefix that is repeated for every row.
    """
    batch: list[tuple[int, ...]] = []
    for row in rows:
        if batch:
            width, count = len(batch[0]), len(batch) + 1
            full = count * width > budget or count * (prefix + width) > cached
            loose = len(row) < width * (1 - _WASTE) and count * width > budget // _SMALL
            if full or loose:
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch
