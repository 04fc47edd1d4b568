"""Rows of a damaged SQLite file, read page by page without SQLite, which stops at the first damaged page.

The pages of the write-ahead log replace those of the file, up to its last complete commit. Every page that looks like
a leaf of a table is read, whether or not the tree above it is intact; cells that make no sense are left out. A row is a
tuple of values without a name: the caller recognizes rows by their number of columns and their checksum.

Format: https://www.sqlite.org/fileformat2.html
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = int | float | bytes | None  # text is bytes too
MAGIC = b"SQLite format 3\0"
PAGE_SIZE = 4096  # of every ledger, unless its header says otherwise
LEAF = 0x0D  # type of a page with the rows of a table
WAL_MAGIC = 0x377F0682  # with the lowest bit: checksums are big-endian
WAL_HEADER, FRAME_HEADER = 32, 24
INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type → bytes


def rows_of(database: Path) -> Iterator[tuple[Value, ...]]:
    """Yield all rows of all tables that can be read, in no particular order; a row may come twice.

    Args:
        database: The file; its write-ahead log is read too, if there is one.

    Raises:
        OSError: The file cannot be read.
    """
    content = database.read_bytes()
    header = content[:100] if content.startswith(MAGIC) else b""
    size = _page_size(header)
    reserved = header[20] if header else 0
    pages = {number + 1: content[at : at + size] for number, at in enumerate(range(0, len(content) - size + 1, size))}
    log = database.with_name(f"{database.name}-wal")
    if log.exists():
        pages |= _committed(log.read_bytes(), size)
    reader = _Reader(pages, size - reserved)
    for number in pages:
        yield from reader.rows(number)


def _page_size(header: bytes) -> int:
    found = int.from_bytes(header[16:18], "big") if header else PAGE_SIZE
    size = 65536 if found == 1 else found
    return size if 512 <= size <= 65536 and size & (size - 1) == 0 else PAGE_SIZE


# --- write-ahead log -------------------------------------------------------------------------------------------------


def _committed(log: bytes, page_size: int) -> dict[int, bytes]:
    """Return number → content of the pages that complete transactions in a write-ahead log have written."""
    if len(log) < WAL_HEADER:
        return {}
    magic, _, size = struct.unpack_from(">III", log)
    if magic & ~1 != WAL_MAGIC or size != page_size:
        return {}
    order, salts = ">" if magic & 1 else "<", log[16:24]
    sums = _sums(log[:24], (0, 0), order)
    if sums != struct.unpack_from(">II", log, 24):
        return {}
    found: dict[int, bytes] = {}
    pending: dict[int, bytes] = {}  # of a transaction whose commit is not read yet
    for at in range(WAL_HEADER, len(log) - FRAME_HEADER - size + 1, FRAME_HEADER + size):
        number, commits = struct.unpack_from(">II", log, at)
        page = log[at + FRAME_HEADER : at + FRAME_HEADER + size]
        sums = _sums(page, _sums(log[at : at + 8], sums, order), order)
        if log[at + 8 : at + 16] != salts or sums != struct.unpack_from(">II", log, at + 16):
            break  # of an earlier use of the file, or damaged
        pending[number] = page
        if commits:
            found |= pending
            pending = {}
    return found


def _sums(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """Continue the checksum of a write-ahead log over more data."""
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


# --- pages -----------------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, pages: dict[int, bytes], usable: int) -> None:
        self._pages, self._usable = pages, usable

    def rows(self, number: int) -> Iterator[tuple[Value, ...]]:
        """Yield the rows of a page, if it is a leaf of a table."""
        page, start = self._pages[number], 100 if number == 1 else 0
        if page[start] != LEAF:
            return
        (count,) = struct.unpack_from(">H", page, start + 3)
        for index in range(min(count, (len(page) - start - 8) // 2)):
            (at,) = struct.unpack_from(">H", page, start + 8 + 2 * index)
            try:
                yield _record(self._payload(page, at))
            except (IndexError, ValueError, struct.error):  # a damaged cell
                continue

    def _payload(self, page: bytes, at: int) -> bytes:
        """Return the payload of the cell at an offset, with that on overflow pages."""
        length, at = _varint(page, at)
        _, at = _varint(page, at)  # the rowid
        usable, most = self._usable, self._usable - 35
        if length <= most:
            return _exactly(page[at : at + length], length)
        if length > len(self._pages) * usable:
            raise ValueError("longer than the file")
        least = (usable - 12) * 32 // 255 - 23
        local = least + (length - least) % (usable - 4)
        local = local if local <= most else least
        parts = [page[at : at + local]]
        (following,) = struct.unpack_from(">I", page, at + local)
        left = length - local
        while left > 0:
            overflow = self._pages.get(following)
            if overflow is None:
                raise ValueError("an overflow page is missing")
            (following,) = struct.unpack_from(">I", overflow)
            parts.append(overflow[4 : 4 + min(left, usable - 4)])
            left -= len(parts[-1])
        return _exactly(b"".join(parts), length)


def _record(payload: bytes) -> tuple[Value, ...]:
    """Return the values of a record."""
    size, at = _varint(payload, 0)
    kinds = []
    while at < size:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Value] = []
    at = size
    for kind in kinds:
        length = INTEGERS.get(kind, 8 if kind == 7 else max(0, kind - 12) // 2)
        data = _exactly(payload[at : at + length], length)
        at += length
        if kind == 0:
            values.append(None)
        elif kind in INTEGERS:
            values.append(int.from_bytes(data, "big", signed=True))
        elif kind == 7:
            values.append(struct.unpack(">d", data)[0])
        elif kind in (8, 9):
            values.append(kind - 8)
        elif kind >= 12:
            values.append(data)
        else:
            raise ValueError("a reserved type")
    return tuple(values)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number of variable length at an offset, and the offset after it."""
    value = 0
    for index in range(8):
        byte = data[at + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    return value << 8 | data[at + 8], at + 9


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise ValueError("cut off")
    return data
