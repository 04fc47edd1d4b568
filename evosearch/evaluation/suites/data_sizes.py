"""Largest size of the files that a suite's task reads; datasets reads, unpacks and decodes whatever it is given."""

import bz2
import glob
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from evosearch.errors import SuiteError
from evosearch.evaluation.suites.row_sizes import row_bytes
from evosearch.untrusted import open_file

MAX_BYTES = 2**30  # of all data files of a task, unpacked; a split takes at most some thousand documents
MAX_FILES = 10_000
CHUNK = 2**20
NEXT = "Keep the documents that the suite needs in a file, and name it by dataset_kwargs.data_files"
# First bytes of a packed file, which datasets recognizes whatever its name, and how to read it
PACKED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
ZIP = b"PK\x03\x04"
# zstd, lz4, 7z and rar: the standard library cannot count what they unpack to
UNCOUNTED = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")


def check_sizes(where: str, name: str, files: Iterator[Path], rows: str = "") -> None:
    """Check that the data files of a task are not larger than `MAX_BYTES` together, also unpacked or decoded.

    Args:
        where: The suite's key, for errors.
        name: Name of the task.
        files: The files. Other things than regular files are left to their reader.
        rows: `parquet` or `arrow` if the files are read as such: their rows are counted.

    Raises:
        SuiteError: They are larger, more than `MAX_FILES`, or packed in a format whose size cannot be counted.
    """
    total, found = 0, list[Path]()
    for file in filter(Path.is_file, files):
        total += _size(where, name, file, MAX_BYTES - total)
        found.append(file)
        if total > MAX_BYTES:
            raise too_large(where, name, "unpacked", file)
        if len(found) > MAX_FILES:
            raise SuiteError(where, f"'{name}' has more than {MAX_FILES} data files", next=NEXT)
    if rows and found and sum(sizes := row_bytes(found, MAX_BYTES, rows)) > MAX_BYTES:
        raise too_large(where, name, "rows", found[len(sizes) - 1])


def too_large(where: str, name: str, what: str, file: Path | None = None) -> SuiteError:
    """Return the error for a task's data: what was counted, and the file that exceeded the limit, if it is known."""
    most, last = f"{MAX_BYTES >> 30} GiB", f", with {file}" if file else ""
    return SuiteError(
        where, f"the data of '{name}' are larger than {most} ({what}){last}", f"Up to {most} for a task", NEXT
    )


def matches(pattern: str) -> Iterator[Path]:
    """Yield the local files of a pattern, or all files below a folder, in no order; at most one more than allowed."""
    found: Iterator[str]
    if os.path.isdir(pattern):
        found = (str(Path(folder) / file) for folder, _, files in os.walk(pattern) for file in files)
    else:
        found = glob.iglob(pattern, recursive=True)
    yield from (Path(file) for file in islice(found, MAX_FILES + 1))


def _size(where: str, name: str, path: Path, most: int) -> int:
    """Return the bytes of a file, unpacked; reading stops above `most`. Damage is left to its reader."""
    with open_file(path, SuiteError) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(tarfile.BLOCKSIZE)
        file.seek(0)
        if size > most:
            return size
        if head.startswith(UNCOUNTED) or _is_tar(head):
            raise _uncounted(where, name, path)
        try:
            if head.startswith(ZIP):
                with zipfile.ZipFile(file) as archive:
                    return sum(entry.file_size for entry in archive.infolist())
            unpacked = next((read(file) for magic, read in PACKED.items() if head.startswith(magic)), None)
            if unpacked is None:
                return size
            count = 0
            while count <= most and (chunk := unpacked.read(CHUNK)):
                if not count and _is_tar(chunk):
                    raise _uncounted(where, name, path)
                count += len(chunk)
            return count
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile):
            return size


def _is_tar(data: bytes) -> bool:
    """Return whether data begin as a tar archive, also an empty one. Its sparse files can state any size."""
    try:
        tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _uncounted(where: str, name: str, path: Path) -> SuiteError:
    what = f"{path} of '{name}' is packed in a format whose size cannot be checked"
    return SuiteError(where, what, "Plain files, or gzip, bzip2, xz or zip", "Unpack it")
