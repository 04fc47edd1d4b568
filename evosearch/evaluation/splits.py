"""Which documents belong to which split: decided by document hashes alone. Pure.

Documents are ordered by sha256(split seed, document hash). `test` takes the first ones, then `validation`, then
`search`: growing `search` moves no document of the other two, and adding documents to a data file moves few. Documents
of one hash are one document: the first is used, so no split can hold a copy of another's.
"""

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.errors import SuiteError

ORDER = ("test", "validation", "search")


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
    pools: Mapping[str, Sequence[str]], tasks: Mapping[str, Mapping[str, Draw]], seed: int, where: Mapping[str, str]
) -> dict[str, dict[str, Selection]]:
    """Task → split → the documents it takes.

    No document (by hash) is in two splits, of one task or of two; within a split, tasks may share documents.

    Args:
        pools: pool → document hashes, a document's id being its position.
        tasks: task → split → what it takes.
        seed: the suite's `split_seed`.
        where: task → the key of its counts, for errors: `quickstart.yaml: tasks[1].documents`.

    Raises:
        SuiteError: a split asks for more documents than are left.
    """
    taken: set[str] = set()  # by the splits before
    chosen: dict[str, dict[str, Selection]] = {task: {} for task in tasks}
    for split in ORDER:
        drawing = {task: draws for task, draws in tasks.items() if split in draws}
        for task, draws in drawing.items():
            pool, count = pools[draws[split].pool], draws[split].count
            unique = _first_ids(pool)
            left = sorted(unique.keys() - taken, key=lambda doc_hash: _order(seed, doc_hash))
            if count > len(left):
                what = f"{count} asked, {_left(len(left), draws, chosen[task], len(pool), len(unique))}"
                raise SuiteError(f"{where[task]}.{split}", what, next="Ask for fewer, or add documents to the task")
            picked = sorted((unique[doc_hash], doc_hash) for doc_hash in left[:count])
            chosen[task][split] = Selection(tuple(i for i, _ in picked), tuple(doc_hash for _, doc_hash in picked))
        taken.update(doc_hash for task in drawing for doc_hash in chosen[task][split].doc_hashes)
    return chosen


def _first_ids(hashes: Sequence[str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for doc_id, doc_hash in enumerate(hashes):
        first.setdefault(doc_hash, doc_id)
    return first


def _order(seed: int, doc_hash: str) -> bytes:
    return hashlib.sha256(f"{seed}:{doc_hash}".encode()).digest()


def _left(left: int, draws: Mapping[str, Draw], before: Iterable[str], total: int, unique: int) -> str:
    text = f"{left} left"
    if before:
        text += " after " + " and ".join(f"{draws[split].count} for {split}" for split in before)
    text += f" of {total} documents"
    return text + (f" ({unique} distinct)" if unique < total else "")


def _plain(value: Any) -> Any:
    """Values that datasets hand out beside JSON's own."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no plain data")
