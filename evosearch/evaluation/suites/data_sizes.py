"""Largest size of the data that a suite's task reads from files; datasets reads and unpacks whatever it is given."""

import bz2
import glob
import gzip
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from evosearch.errors import SuiteError
from evosearch.untrusted import open_file

MAX_BYTES = 2**30  # of all data files of a task, unpacked; a split takes at most some thousand documents
MAX_FILES = 10_000
CHUNK = 2**20
NEXT = "Keep the documents that the suite needs, or put the data on the hub and name it by dataset_path"
# First bytes of a packed file, which datasets recognizes whatever its name, and how to read it
PACKED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
ZIP = b"PK\x03\x04"
# zstd, lz4, 7z and rar: the standard library cannot count what they unpack to
UNCOUNTED = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")


def check_sizes(where: str, name: str, files: Iterator[Path]) -> None:
    """Check that the data files of a task are not larger than `MAX_BYTES` together, also unpacked.

    Args:
        where: The suite's key, for errors.
        name: Name of the task.
        files: The files. Other things than regular files are left to their reader.

    Raises:
        SuiteError: They are larger, more than `MAX_FILES`, or packed in a format whose size cannot be counted.
    """
    total = 0
    for count, file in enumerate(file for file in files if file.is_file()):
        total += _size(where, name, file, MAX_BYTES - total)
        if total > MAX_BYTES:
            what = f"the data of '{name}' are larger than {MAX_BYTES >> 30} GiB (unpacked), with {file}"
            raise SuiteError(where, what, f"Up to {MAX_BYTES >> 30} GiB for a task", NEXT)
        if count >= MAX_FILES:
            raise SuiteError(where, f"'{name}' has more than {MAX_FILES} data files", next=NEXT)


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
        head = file.read(6)
        file.seek(0)
        if size > most:
            return size
        if head.startswith(UNCOUNTED):
            what = f"{path} of '{name}' is packed in a format whose size cannot be checked"
            raise SuiteError(where, what, "Plain files, or gzip, bzip2, xz or zip", "Unpack it")
        try:
            if head.startswith(ZIP):
                with zipfile.ZipFile(file) as archive:
                    return sum(entry.file_size for entry in archive.infolist())
            unpacked = next((read(file) for magic, read in PACKED.items() if head.startswith(magic)), None)
            if unpacked is None:
                return size
            count = 0
            while count <= most and (chunk := unpacked.read(CHUNK)):
                count += len(chunk)
            return count
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile):
            return size
