"""How pieces of different lengths are put beside each other: in rows of about one length, with little padding. Pure."""

from collections.abc import Iterator, Sequence
from heapq import heapreplace

_WASTE = 0.25  # of a batch of plain rows may be padding
_SMALL = 16  # a batch below a 16th of the budget takes any row: a run of its own costs more than padding does
_PADDING = 0.034  # of a run of the trie; with what is run twice, a twentieth at most
_REPEATED = 2  # rows repeat what is kept: up to this many times the run's own tokens, so that memory stays bounded


def arrange(sizes: Sequence[int], kept: int, wide: int) -> list[list[list[int]]]:
    """Pieces to rows to runs: few runs of short rows, as far as padding and the repeated cache allow.

    One run where its rows can be made equal: for a number of rows, the longest piece left goes to the shortest row
    (Graham 1969). Else pieces of about one size stand beside each other, one in a row; or they follow each other in
    runs of a single row.
    """
    total, order = sum(sizes), sorted(range(len(sizes)), key=lambda index: -sizes[index])
    for count in range(len(sizes), 0, -1):
        rows = _level(sizes, order, count)
        width = max(sum(sizes[index] for index in row) for row in rows)
        if width > max(wide, sizes[order[0]]):
            break  # fewer rows are wider still
        padding = count * width - total
        if count == 1 or (padding <= _PADDING * total and count * kept <= _REPEATED * total):
            return [rows]
    runs: list[list[list[int]]] = [[]]
    held = 0  # tokens of the run that is being filled
    for index in order:
        size, run = sizes[index], runs[-1]
        beside = (len(run) + 1) * sizes[run[0][0]] - held - size if run and len(run[0]) == 1 else total
        if run and beside <= _PADDING * (held + size) and (len(run) + 1) * kept <= _REPEATED * (held + size):
            run.append([index])
        elif len(run) == 1 and held + size <= wide:
            run[0].append(index)
        else:
            held = 0
            runs.append([[index]])
        held += size
    return [run for run in runs if run]


def _level(sizes: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """Pieces, longest first, in rows of about one length."""
    rows: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for index in order:
        load, number = loads[0]
        rows[number].append(index)
        heapreplace(loads, (load + sizes[index], number))
    return rows


def batches(rows: Sequence[tuple[int, ...]], budget: int, cached: int, keep: int) -> Iterator[list[tuple[int, ...]]]:
    """Rows, longest first, cut where the next one would exceed a budget or be mostly padding."""
    batch: list[tuple[int, ...]] = []
    for row in rows:
        if batch:
            width, count = len(batch[0]), len(batch) + 1
            full = count * width > budget or count * (keep + width) > cached
            loose = len(row) < width * (1 - _WASTE) and count * width > budget // _SMALL
            if full or loose:
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch
