"""Which documents belong to which split: decided by document hashes alone. Pure.

Documents are ordered by sha256(split seed, document hash). `test` takes the first ones, then `validation`, then
`search`: growing `search` moves no document of the other two, and adding documents to a data file moves few. Documents
of one hash are one document: the first is used, so no split can hold a copy of another's.

Documents may be tied together, as near-duplicates or by a group: a split then passes over what is tied to a document of
a split before it. Documents without ties keep their places in the order. Where a task names groups, groups are ordered
by their names: a split takes one after the other, of the last one perhaps a part, whose rest is used nowhere.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.errors import SuiteError

ORDER = ("test", "validation", "search")
_TIED = "; `near_duplicates` sets what counts as one, or is `false`"


@dataclass(frozen=True)
class Draw:
    """What one split takes of one pool of documents."""

    pool: str  # name of the pool: the lm-eval task
    count: int


@dataclass(frozen=True)
class Selection:
    """Documents drawn for one split, by rising id."""

    doc_ids: tuple[int, ...]
    doc_hashes: tuple[str, ...]


def document_hash(document: Any) -> str:
    """sha256 (hex) of a document's canonical JSON: every field, keys sorted.

    Raises:
        TypeError: the document holds something that is no plain data (an image, say).
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def split_documents(
    pools: Mapping[str, Sequence[str]],
    tasks: Mapping[str, Mapping[str, Draw]],
    seed: int,
    where: Mapping[str, str],
    ties: Mapping[str, Sequence[str]] | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, dict[str, Selection]]:
    """Task → split → the documents it takes.

    No document (by hash), and no two that are tied, are in two splits, of one task or of two; within a split, tasks may
    share documents.

    Args:
        pools: pool → document hashes, a document's id being its position.
        tasks: task → split → what it takes.
        seed: the suite's `split_seed`.
        where: task → the key of its counts, for errors: `quickstart.yaml: tasks[1].documents`.
        ties: document → keys; documents that share a key are tied. Most have none.
        groups: task → document → group, of tasks that name groups.

    Raises:
        SuiteError: a split asks for more documents than are left.
    """
    ties, groups = ties or {}, groups or {}
    taken: set[str] = set()  # documents and keys, by the splits before
    chosen: dict[str, dict[str, Selection]] = {task: {} for task in tasks}
    for split in ORDER:
        drawing = {task: draws for task, draws in tasks.items() if split in draws}
        for task, draws in drawing.items():
            pool, count = pools[draws[split].pool], draws[split].count
            unique = _first_ids(pool)
            free = unique.keys() - taken
            left = [doc_hash for doc_hash in free if taken.isdisjoint(ties.get(doc_hash, ()))]
            left.sort(key=_order(seed, groups.get(task)))
            if count > len(left):
                tied = len(free) - len(left)
                what = f"{count} asked, {_left(len(left), draws, chosen[task], len(pool), len(unique), tied)}"
                next_step = "Ask for fewer, or add documents to the task"
                raise SuiteError(f"{where[task]}.{split}", what, next=next_step + (_TIED if tied else ""))
            picked = sorted((unique[doc_hash], doc_hash) for doc_hash in left[:count])
            chosen[task][split] = Selection(tuple(i for i, _ in picked), tuple(doc_hash for _, doc_hash in picked))
        for task in drawing:
            for doc_hash in chosen[task][split].doc_hashes:
                taken.update((doc_hash, *ties.get(doc_hash, ())))
    return chosen


def _first_ids(hashes: Sequence[str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for doc_id, doc_hash in enumerate(hashes):
        first.setdefault(doc_hash, doc_id)
    return first


def _order(seed: int, groups: Mapping[str, str] | None) -> Callable[[str], tuple[bytes, ...]]:
    """The sort key of document hashes."""

    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()

    if groups is None:
        return lambda doc_hash: (digest(doc_hash),)
    return lambda doc_hash: (digest(groups[doc_hash]), digest(doc_hash))


def _left(left: int, draws: Mapping[str, Draw], before: Iterable[str], total: int, unique: int, tied: int) -> str:
    text = f"{left} left"
    if before:
        text += " after " + " and ".join(f"{draws[split].count} for {split}" for split in before)
    text += f" of {total} documents"
    text += f" ({unique} distinct)" if unique < total else ""
    return text + (f", {tied} being near-duplicates of those, or of their groups" if tied else "")


def _plain(value: Any) -> Any:
    """Values that datasets hand out beside JSON's own."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no plain data")
