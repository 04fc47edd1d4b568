"""Checks of free disk space before anything is written."""

import os
import shutil
from pathlib import Path

from evosearch.errors import CheckpointError

GIB = 2.0**30
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


def size(count: int) -> str:
    """Format a number of bytes: `3.4 GiB`, `812 bytes`."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
