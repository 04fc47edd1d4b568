"""Room on disks: what is needed is held against what is free before anything is written."""

import shutil
from pathlib import Path

from evosearch.errors import CheckpointError

GIB = 2.0**30
ROOM = "Make room, or name a folder on another disk"


def check_room(folder: Path, needed: int, what: str) -> None:
    """Say beforehand that a disk is too small: a night's work should not find it out at its end.

    Args:
        folder: where it will be written; need not exist yet.
        needed: bytes.
        what: will be written there, for the message.

    Raises:
        CheckpointError: fewer bytes are free.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        text = f"has no room for {what}: that takes {size(needed)}, and {size(free)} are free there"
        raise CheckpointError(str(folder), text, next=ROOM)


def size(count: int) -> str:
    """Bytes for a person: `3.4 GiB`, `812 bytes`."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
