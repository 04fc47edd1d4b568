"""Rows of the ledger's tables: what they contain, their checksums, and what makes one damaged.

A checksum covers all other columns of its row, so that a changed number is found where it is read. It is no signature:
whoever writes to a ledger can compute it. Compressed columns are unpacked up to a limit, because a shared ledger may
have been written by others.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from evosearch.evaluation.types import Column, ItemSet, ScoreCard
from evosearch.search.ledger.events import Event

Row = Mapping[str, Any]
CHECKSUM = "checksum"
MOST_NUMBERS = 2**24  # of one column of scores
MOST_BYTES = 2**28  # of an item set: about two million documents


class DamagedRowError(ValueError):
    """A row that is not as it was written."""


def checksum(row: Row) -> str:
    """Return the checksum of a row: 64 bits of BLAKE2b, in hex, over all other columns by name.

    Numbers are written like JSON, text and binary data with their lengths.
    """
    hashed = hashlib.blake2b(digest_size=8)
    for name in sorted(row.keys() - {CHECKSUM, "id"}):  # `id` is the database's number of a test opening
        value = row[name]
        data = value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else repr(value).encode()
        hashed.update(f"{name} {type(value).__name__} {len(data)} ".encode() + data)
    return hashed.hexdigest()


def with_checksum(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its checksum."""
    return row | {CHECKSUM: checksum(row)}


def check(row: Row, what: str) -> None:
    """Check a row against its checksum.

    Raises:
        DamagedRowError: It has changed.
    """
    if row[CHECKSUM] != checksum(row):
        raise DamagedRowError(f"{what} has changed since it was written")


def event_of(row: Row) -> Event:
    """Return the event of a row.

    Raises:
        DamagedRowError: The row is damaged.
    """
    what = f"event {row['seq']} of search {str(row['search_id'])[:12]}"
    check(row, what)
    payload = _json(row["payload"], what)
    return Event(row["seq"], row["time"], row["type"], payload, row["clock"])


def item_set_row(items: ItemSet) -> dict[str, Any]:
    """Return the row of an item set. Its digest, computed from the content, is its checksum."""
    data = {name: getattr(items, name) for name in ("doc_ids", "doc_hashes", "groups", "documents")}
    packed = zlib.compress(dump(data).encode())
    return {"digest": items.digest, "task": items.task, "lm_eval_task": items.lm_eval_task, "data": packed}


def item_set_of(row: Row) -> ItemSet:
    """Return the item set of a row.

    Raises:
        DamagedRowError: The row is damaged, or larger than any real item set.
    """
    what = f"item set {str(row['digest'])[:12]}"
    data = _json(inflated(row["data"], MOST_BYTES, what), what)
    try:
        doc_ids, doc_hashes, groups = (tuple(data[key]) for key in ("doc_ids", "doc_hashes", "groups"))
        items = ItemSet(row["task"], row["lm_eval_task"], doc_ids, doc_hashes, groups, data["documents"])
        changed = items.digest != row["digest"]
    except (KeyError, TypeError, ValueError):
        changed = True
    if changed:
        raise DamagedRowError(f"{what} has changed since it was written")
    return items


def score_rows(search_id: str, candidate: str, card: ScoreCard) -> Iterator[dict[str, Any]]:
    """Yield a row for each column of a score card."""
    for task, columns in card.columns.items():
        for name, values in columns.items():
            array = np.ascontiguousarray(values, dtype="<f8")
            assert array.ndim == 1, f"{task} {name}: one number per item or request"
            yield with_checksum(
                {
                    "search_id": search_id,
                    "candidate": candidate,
                    "split": card.split,
                    "digest": card.set_digests[task],
                    "column": name,
                    "n": array.size,
                    "data": zlib.compress(array.tobytes()),
                }
            )


def column_of(row: Row) -> Column:
    """Return the scores of a row: (items,) or (requests,) float64.

    Raises:
        DamagedRowError: The row is damaged, or larger than any real column.
    """
    what = f"column {row['column']} of {row['candidate']} on {row['split']}"
    check(row, what)
    if not isinstance(row["n"], int) or not 0 <= row["n"] <= MOST_NUMBERS:
        raise DamagedRowError(f"{what} has {row['n']} numbers, and at most {MOST_NUMBERS} are read")
    data = inflated(row["data"], 8 * row["n"], what)
    if len(data) != 8 * row["n"]:
        raise DamagedRowError(f"{what} has {len(data)} bytes instead of {row['n']} numbers")
    return np.frombuffer(data, dtype="<f8").astype(np.float64)


def inflated(data: bytes, most: int, what: str) -> bytes:
    """Return decompressed data, of which at most `most` bytes are kept in memory.

    Args:
        data: zlib data.
        most: Maximum number of bytes.
        what: The data, for the error.

    Raises:
        DamagedRowError: There are more, or it is not complete zlib data.
    """
    unpacking = zlib.decompressobj()
    try:
        found = unpacking.decompress(data, most + 1)
    except (zlib.error, TypeError) as exc:
        raise DamagedRowError(f"{what} cannot be unpacked: {exc}") from None
    if len(found) > most:
        raise DamagedRowError(f"{what} has more than {most} bytes")
    if not unpacking.eof:
        raise DamagedRowError(f"{what} is incomplete")
    return found


def dump(payload: Any) -> str:
    """Serialize to JSON without NaN and infinity: a score that is not finite is a failure with a reason."""
    text = json.dumps(payload, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, from a file name in a traceback for example
        return json.dumps(payload, allow_nan=False, separators=(",", ":"))
    return text


def _json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as exc:
        raise DamagedRowError(f"{what} is not JSON: {exc}") from None
