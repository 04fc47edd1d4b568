"""Assignment of documents to splits, by document hashes alone. Pure.

Documents are ordered by sha256(split seed, document hash). `test` takes the first ones, then `validation`, then
`search`: a larger `search` leaves the other two unchanged, and adding documents to a data file moves few. Documents
with equal hashes count as one, so no split contains a copy of another split's document.

Documents may be linked, as near-duplicates or by a group: a split skips documents that are linked to an earlier split.
Unlinked documents keep their positions in the order. If a task has groups, they are ordered by the hash of their names,
and a split takes complete groups in this order; the surplus documents of its last group are not used.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.errors import SuiteError

ORDER = ("test", "validation", "search")
_LINKED_HINT = "; or raise the similarity threshold `near_duplicates` (`false` disables it)"


@dataclass(frozen=True)
class Draw:
    """Number of documents that a split takes from a pool."""

    pool: str  # see `harness.pool_name`
    count: int


@dataclass(frozen=True)
class Selection:
    """Documents drawn for one split, in ascending order of id."""

    doc_ids: tuple[int, ...]
    doc_hashes: tuple[str, ...]


def document_hash(document: Any) -> str:
    """Return the sha256 (hex) of a document's canonical JSON: every field, keys sorted.

    Raises:
        TypeError: The document contains a value that is not plain data, such as an image.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def split_documents(
    pools: Mapping[str, Sequence[str]],
    tasks: Mapping[str, Mapping[str, Draw]],
    seed: int,
    where: Mapping[str, str],
    links: Mapping[str, Sequence[str]] | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, dict[str, Selection]]:
    """Draw the documents of each task and split.

    Different splits never contain the same document (by hash) or linked documents, even of different tasks; within a
    split, tasks may share documents.

    Args:
        pools: Pool → document hashes; a document's id is its position.
        tasks: Task → split → its pool and number of documents.
        seed: The suite's `split_seed`.
        where: Task → the key of its counts, for errors: `quickstart.yaml: tasks[1].documents`.
        links: Document hash → keys; documents that share a key are linked. Most documents have none.
        groups: Task → document hash → group, for tasks with `group_by`.

    Returns:
        Task → split → the documents drawn.

    Raises:
        SuiteError: A split requests more documents than are left.
    """
    links, groups = links or {}, groups or {}
    taken: set[str] = set()  # documents and keys of earlier splits
    chosen: dict[str, dict[str, Selection]] = {task: {} for task in tasks}
    for split in ORDER:
        drawing = {task: draws for task, draws in tasks.items() if split in draws}
        for task, draws in drawing.items():
            pool, count = pools[draws[split].pool], draws[split].count
            unique = _first_ids(pool)
            free = unique.keys() - taken
            left = [doc_hash for doc_hash in free if taken.isdisjoint(links.get(doc_hash, ()))]
            left.sort(key=_order(seed, groups.get(task)))
            if count > len(left):
                linked = len(free) - len(left)
                what = f"{count} requested, {_left(len(left), draws, chosen[task], len(pool), len(unique), linked)}"
                next_step = "Request fewer, or add documents to the task"
                raise SuiteError(f"{where[task]}.{split}", what, next=next_step + (_LINKED_HINT if linked else ""))
            picked = sorted((unique[doc_hash], doc_hash) for doc_hash in left[:count])
            chosen[task][split] = Selection(tuple(i for i, _ in picked), tuple(doc_hash for _, doc_hash in picked))
        for task in drawing:
            for doc_hash in chosen[task][split].doc_hashes:
                taken.update((doc_hash, *links.get(doc_hash, ())))
    return chosen


def _first_ids(hashes: Sequence[str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for doc_id, doc_hash in enumerate(hashes):
        first.setdefault(doc_hash, doc_id)
    return first


def _order(seed: int, groups: Mapping[str, str] | None) -> Callable[[str], tuple[bytes, ...]]:
    """Sort key of document hashes."""

    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()

    if groups is None:
        return lambda doc_hash: (digest(doc_hash),)
    return lambda doc_hash: (digest(groups[doc_hash]), digest(doc_hash))


def _left(left: int, draws: Mapping[str, Draw], before: Iterable[str], total: int, unique: int, linked: int) -> str:
    text = f"{left} left"
    if before:
        text += " after " + " and ".join(f"{draws[split].count} for {split}" for split in before)
    text += f" of {total} documents"
    text += f" ({unique} distinct)" if unique < total else ""
    return text + (f"; {linked} are near-duplicates of documents already taken, or in their groups" if linked else "")


def _plain(value: Any) -> Any:
    """Convert values of datasets that JSON cannot represent."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not plain data")
