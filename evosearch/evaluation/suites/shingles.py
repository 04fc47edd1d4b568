"""Shingles of a document's text: runs of a few words, used to find near-duplicates. Pure.

The text consists of the strings and numbers in the document's question fields (question_fields.py). Each field (a list
counts as one) is cut into runs of three words, or longer runs if few words are distinct, as in strings of spaced
letters. Words are compared after NFKC and casefolding; sentence punctuation is dropped, other symbols are words, and in
scripts without spaces each character is a word. Digits are kept, because answers depend on numbers: if they were
masked, all addition problems would be near-duplicates. A field shorter than a shingle is one shingle, so short texts
match only if they are equal. Identifiers (by name: `id`, `question_id`, `url`) and fields without content (constants
and labels) are ignored.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = 3  # words in a shingle

_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|[^\w\s]")
_MARKS = str.maketrans(dict.fromkeys(".,;:!?…\"'`´“”„‘’«»、。・「」", " "))
_IDENTIFIER = re.compile(r"(^|_)(id|ids|idx|uid|guid|uuid|qid|url)$", re.IGNORECASE)
_LABEL_SHARE = 0.1  # a field is a label if its values are short and at most this fraction of the documents' number
_LABEL_WORDS = 3
_CHANCE = 20  # (distinct words) ** width must be at least this many times the number of words
Ids = NDArray[np.int64]
_Hashes = NDArray[np.uint64]


def words(text: str) -> list[str]:
    """Return a text's normalized words."""
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(text.translate(_MARKS)) or _WORD.findall(text)


def contents(documents: Iterable[Any]) -> list[list[str]]:
    """Return the texts of each document's fields, without identifiers and labels."""
    fields = [_fields(document) for document in documents]
    values: dict[str, dict[str, int]] = {}
    for own in fields:
        for path, text in own.items():
            counts = values.setdefault(path, {})
            counts[text] = counts.get(text, 0) + 1
    empty = {path for path, counts in values.items() if _is_label(counts)}
    return [[text for path, text in own.items() if path not in empty] for own in fields]


def _is_label(counts: Mapping[str, int]) -> bool:
    total = sum(counts.values())
    if len(counts) > _LABEL_SHARE * total:
        return False
    return len(counts) == 1 or all(len(words(text)) <= _LABEL_WORDS for text in counts)


def _fields(document: Any) -> dict[str, str]:
    """Path of a field → its text. The items of a list, nested values included, form one text per path."""
    parts: dict[str, list[str]] = {}
    for path, text in _leaves(document, ""):
        parts.setdefault(path, []).append(text)
    return {path: " ".join(texts) for path, texts in parts.items()}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if hasattr(value, "tolist"):  # a numpy scalar or array
        value = value.tolist()
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key in value:
            if not _IDENTIFIER.search(str(key)):
                yield from _leaves(value[key], f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, repr(value)


def shingles(texts: Sequence[Sequence[str]]) -> tuple[Ids, Ids]:
    """Return (owner, shingle id) of all documents, sorted by owner; repeats in a document get distinct ids."""
    known = _WordHashes()
    widths: dict[int, _Fields] = {}
    for owner, own in enumerate(texts):
        for text in own:
            if found := words(text):
                width = _width(found)
                fields = widths.setdefault(width, _Fields())
                fields.words.extend(map(known.__getitem__, found))
                fields.words.extend([0] * (width - len(found)))  # pad a short field
                fields.lengths.append(max(width, len(found)))
                fields.owners.append(owner)
    if not widths:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    windows = [_windows(fields, width) for width, fields in widths.items()]
    owners = np.concatenate([owner for owner, _ in windows])
    distinct, ids = np.unique(np.concatenate([hashes for _, hashes in windows]), return_inverse=True)
    key = np.sort(owners * len(distinct) + ids)
    first = np.ones(len(key), dtype=bool)
    first[1:] = key[1:] != key[:-1]
    nth = np.arange(len(key)) - np.flatnonzero(first)[np.cumsum(first) - 1]
    owners, ids = np.divmod(key, len(distinct))
    if nth.any():
        _, ids = np.unique(_mix(distinct[ids] + nth.astype(np.uint64)), return_inverse=True)
    return owners, ids.astype(np.int64)


@dataclass
class _Fields:
    """Fields whose shingles have the same width."""

    words: list[int] = field(default_factory=list)  # hashes of all words, one field after another
    lengths: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)


def _width(found: Sequence[str]) -> int:
    """Words in a shingle: three, or more if so few words are distinct that runs of three recur by chance."""
    distinct, width = len(set(found)), WORDS
    while distinct**width < _CHANCE * len(found) and width < len(found):
        width += 1
    return width


def _windows(fields: _Fields, width: int) -> tuple[Ids, _Hashes]:
    """(owner, hash) of every run of `width` words within one field."""
    hashes, lengths = np.array(fields.words, dtype=np.uint64), np.array(fields.lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(hashes))  # words left in the field
    begins = np.flatnonzero(left >= width)
    mixed = np.zeros(len(begins), dtype=np.uint64)
    for k in range(width):
        mixed = _mix(mixed + hashes[begins + k])
    return np.repeat(np.array(fields.owners), lengths)[begins], mixed


class _WordHashes(dict[str, int]):
    """Word → 64 bits of its BLAKE2b digest."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = int.from_bytes(digest, "little")
        return self[word]


def _mix(x: _Hashes) -> _Hashes:
    """A bijection of 64-bit integers that spreads every bit (the finalizer of SplitMix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
