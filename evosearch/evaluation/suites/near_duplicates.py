"""Near-duplicate documents, by an exact set-similarity join over their shingles. Pure.

    J(A, B) = |A ∩ B| / |A ∪ B| ≥ threshold          A, B multisets of shingles (Jaccard similarity), see shingles.py

Pairs are found by prefix filtering instead of sampled hashes: if the shingles of every document are ordered by rarity,
two documents of similarity t or more share at least one of their first n − ⌈t·n⌉ + 1 shingles (Chaudhuri et al. 2006;
Bayardo et al. 2007). No pair is missed, and the same documents always give the same pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from evosearch.evaluation.suites.shingles import Ids, contents, shingles

_PRODUCT = 4_000_000  # pairs of prefix shingles matched at once; bounds memory
_PAIRS = 50_000  # pairs of documents compared at once
_BITS = 512  # size of a document's bitmap


def near_duplicates(pools: Sequence[Mapping[str, Any]], threshold: float) -> dict[str, str]:
    """Return document hash → name of its cluster, for documents that have near-duplicates.

    A cluster is a connected component of sufficiently similar pairs, within a pool or across pools. Its name is the
    smallest hash in it, so adding unrelated documents does not rename it.

    Args:
        pools: For each pool, document hash → document; documents of one pool have the same fields.
        threshold: Minimum similarity, in (0, 1]; 1 requires texts that are equal after normalization.
    """
    hashes: list[str] = []
    texts: list[list[str]] = []
    seen: set[str] = set()
    for pool in pools:
        new = {doc_hash: document for doc_hash, document in pool.items() if doc_hash not in seen}
        seen.update(new)
        hashes += new
        texts += contents(new.values())
    owners, found = shingles(texts)
    labels = _clusters(owners, found, threshold)
    members: dict[int, list[str]] = {}
    for owner, label in labels.items():
        members.setdefault(label, []).append(hashes[owner])
    return {
        doc_hash: name
        for name, cluster in ((min(cluster), cluster) for cluster in members.values())
        for doc_hash in cluster
        if len(cluster) > 1
    }


def _clusters(owners: Ids, found: Ids, threshold: float) -> dict[int, int]:
    """Owner → label of its cluster, for every document that has shingles."""
    if not len(owners):
        return {}
    present, starts, sizes = np.unique(owners, return_index=True, return_counts=True)
    counts = np.bincount(found)
    rarity = np.empty(len(counts), dtype=np.int64)
    rarity[np.argsort(counts, kind="stable")] = np.arange(len(counts))  # 0 is the rarest shingle
    ranks = np.sort(owners * len(counts) + rarity[found]) % len(counts)
    same: dict[bytes, int] = {}  # equal texts share a row, so copies cost no comparison
    row_of = [
        same.setdefault(ranks[start : start + size].tobytes(), len(same))
        for start, size in zip(starts, sizes, strict=True)
    ]
    rows = np.unique(np.array(row_of), return_index=True)[1]
    labels = _joined(ranks, starts[rows], sizes[rows], threshold)
    return {int(owner): int(labels[row]) for owner, row in zip(present, row_of, strict=True)}


def _joined(ranks: Ids, starts: Ids, sizes: Ids, threshold: float) -> Ids:
    """(rows,) cluster label of each row; a row's shingles are `ranks[start : start + size]`, rarest first."""
    prefixes = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    full, prefix = _matrix(ranks, starts, sizes), _matrix(ranks, starts, prefixes)
    shared = np.asarray(prefix.sum(axis=0)).ravel()
    prefix.data[shared[prefix.indices] < 2] = 0
    prefix.eliminate_zeros()
    transposed = prefix.T.tocsr()
    costs = np.asarray(prefix @ shared).ravel()
    similar = _SimilarPairs(full, sizes, threshold)
    labels = np.arange(len(sizes))
    rows = np.arange(len(sizes))
    skipped: int | None = None  # a row of the giant cluster, whose other rows are skipped
    while len(rows):
        count = max(1, int(np.searchsorted(np.cumsum(costs[rows]), _PRODUCT)))
        block, rows = rows[:count], rows[count:]
        found = (prefix[block] @ transposed).tocoo()
        a, b = block[found.row], found.col.astype(np.int64)
        keep = (labels[a] != labels[b]) & (a < b if skipped is None else True)
        labels = _union(labels, *similar.filter(a[keep], b[keep]))
        if skipped is None:
            label = np.bincount(labels).argmax()
            if 2 * np.count_nonzero(labels[rows] == label) > len(rows):
                skipped = int(np.flatnonzero(labels == label)[0])
        if skipped is not None:  # skip the giant cluster: comparing all other rows with it is enough
            rows = rows[labels[rows] != labels[skipped]]
    return labels


def _matrix(ranks: Ids, starts: Ids, lengths: Ids) -> Any:
    """(rows, shingles) indicator matrix of each row's first `lengths` shingles."""
    ends = np.concatenate(([0], np.cumsum(lengths)))
    columns = ranks[np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)]
    return sparse.csr_matrix(
        (np.ones(len(columns), dtype=np.int32), columns, ends), shape=(len(lengths), int(ranks.max()) + 1)
    )


class _SimilarPairs:
    """Filter of row pairs by similarity: first by an upper bound from bitmaps, then by exact counts."""

    def __init__(self, full: Any, sizes: Ids, threshold: float) -> None:
        self._full, self._sizes, self._threshold = full, sizes, threshold
        bits = np.zeros((len(sizes), _BITS), dtype=bool)
        bits[np.repeat(np.arange(len(sizes)), sizes), full.indices % _BITS] = True
        self._bits = np.packbits(bits, axis=1).view(np.uint64)  # (rows, _BITS / 64)

    def filter(self, a: Ids, b: Ids) -> tuple[Ids, Ids]:
        """Keep the pairs (a, b) whose similarity is at least the threshold."""
        passed = [self._passed(a[at : at + _PAIRS], b[at : at + _PAIRS]) for at in range(0, len(a), _PAIRS)]
        kept = np.concatenate([np.zeros(0, dtype=bool), *passed])
        return a[kept], b[kept]

    def _passed(self, a: Ids, b: Ids) -> NDArray[np.bool_]:
        both = self._sizes[a] + self._sizes[b]
        needed = self._threshold / (1 + self._threshold) * both - 1e-9  # J ≥ t  ⇔  |A ∩ B| ≥ t / (1 + t) · (|A| + |B|)
        one, other = self._bits[a], self._bits[b]
        # |A ∩ B| = |A| − |A \ B|, and each bit set only in A is a shingle found only in A.
        bound = np.minimum(
            self._sizes[a] - np.bitwise_count(one & ~other).sum(axis=1, dtype=np.int64),
            self._sizes[b] - np.bitwise_count(other & ~one).sum(axis=1, dtype=np.int64),
        )
        passed = bound >= needed
        i, j = a[passed], b[passed]
        common = np.asarray(self._full[i].multiply(self._full[j]).sum(axis=1)).ravel()
        passed[passed] = common >= needed[passed]
        return passed


def _union(labels: Ids, a: Ids, b: Ids) -> Ids:
    if not len(a):
        return labels
    n = len(labels)
    edges = sparse.coo_matrix((np.ones(len(a), dtype=np.int8), (labels[a], labels[b])), shape=(n, n))
    return connected_components(edges, directed=False)[1].astype(np.int64)[labels]
