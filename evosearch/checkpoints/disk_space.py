"""Checks of free disk space before anything is written, and sizes as text."""

import os
import re
import shutil
from pathlib import Path

from evosearch.errors import CheckpointError

GIB = 2.0**30
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgt])(i)?)?b?", re.IGNORECASE | re.ASCII)
FREE_SPACE = "Free some space, or choose a folder on another disk"
OTHER = "Choose another folder"


def check_disk_space(folder: Path, needed: int, what: str) -> None:
    """Check that a disk has enough free space.

    Args:
        folder: Folder to write to; need not exist yet.
        needed: Bytes to write.
        what: What will be written, for the message.

    Raises:
        CheckpointError: Fewer bytes are free, or the file system is read-only.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if is_read_only(there):
        raise CheckpointError(str(folder), f"on a read-only file system, and {what} will be written there", next=OTHER)
    free = shutil.disk_usage(there).free
    if free < needed:
        text = f"not enough disk space for {what}: {size(needed)} needed, {size(free)} free"
        raise CheckpointError(str(folder), text, next=FREE_SPACE)


def is_read_only(folder: Path) -> bool:
    """Return whether an existing folder is on a read-only file system."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def parse_size(text: str, where: str) -> int:
    """Return the bytes of a size: `200GB`, `1.5TB`, `800GiB`, `0`.

    Args:
        text: The size, in bytes without a unit.
        where: Setting to name in errors.

    Raises:
        CheckpointError: It is not a size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise CheckpointError(where, f"got {text!r}", "A size: 200GB, 1.5TB, 800GiB, 0")
    number, prefix, binary = float(found[1]), (found[2] or "").lower(), found[3]
    return int(number * (1024 if binary else 1000) ** (" kmgt".index(prefix) if prefix else 0))


def size(count: int) -> str:
    """Format a number of bytes: `3.4 GiB`, `812 bytes`."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
