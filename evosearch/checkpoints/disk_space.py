"""Checks of free disk space before anything is written."""

import shutil
from pathlib import Path

from evosearch.errors import CheckpointError

GIB = 2.0**30
FREE_SPACE = "Free some space, or choose a folder on another disk"


def check_disk_space(folder: Path, needed: int, what: str) -> None:
    """Check that a disk has enough free space.

    Args:
        folder: Folder to write to; need not exist yet.
        needed: Bytes to write.
        what: What will be written, for the message.

    Raises:
        CheckpointError: Fewer bytes are free.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        text = f"not enough disk space for {what}: {size(needed)} needed, {size(free)} free"
        raise CheckpointError(str(folder), text, next=FREE_SPACE)


def size(count: int) -> str:
    """Format a number of bytes: `3.4 GiB`, `812 bytes`."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
