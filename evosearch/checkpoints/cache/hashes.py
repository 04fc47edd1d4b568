"""Hashes of files that are known already: what did not change since is not read again.

A marker is one JSON file in the cache for a set of files that are hashed together:

    {"version": 1, "files": {path: [size in bytes, mtime_ns, ctime_ns, inode]}, "sha256": "…"}

All of these must be as they were. ctime is set by the system alone, so a file that is replaced by one with an old mtime
(as `cp -p` and `rsync -t` make them) is seen, too; and nodes that share a cache do not mistake each other's files.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from evosearch.errors import CheckpointError

VERSION = 1  # of what is hashed and how: a change makes old markers void
FOLDER = "hashes"  # in the cache
TICK_NS = 50 * 10**6  # file times advance in ticks of the kernel's clock (up to 10 ms); a wide margin
COARSE_NS = 2 * 10**9  # on file systems that keep whole seconds

Found = TypeVar("Found")
Stamp = dict[str, list[int]]  # path → what must not have changed


class Hashes:
    """The markers of one cache. Where they cannot be written, files are hashed again each time."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / FOLDER

    def of(self, files: Sequence[Path], compute: Callable[[], str]) -> str:
        """The hash of these files, computed unless it is known.

        Args:
            files: all that `compute` reads.

        Raises:
            CheckpointError: one of them was removed meanwhile, or cannot be read.
        """
        paths = sorted({os.path.realpath(path) for path in files})
        marker = self._folder / f"{hashlib.sha256(json.dumps(paths).encode()).hexdigest()}.json"
        try:
            stamp, began = _stamp(paths), time.time_ns()
        except OSError:  # which reading them will tell of
            return _told(compute, paths)
        known = _read(marker)
        if known is not None and (known.get("version"), known.get("files")) == (VERSION, stamp):
            return str(known["sha256"])
        found = _told(compute, paths)
        after = _told(partial(_stamp, paths), paths)
        if _settled(stamp, began) and after == stamp:  # not written to while, or right before, it was read
            _write(marker, {"version": VERSION, "files": stamp, "sha256": found})
        return found


def _told(read: Callable[[], Found], paths: Sequence[str]) -> Found:
    """What `read` finds, or a CheckpointError that names the file."""
    try:
        return read()
    except OSError as exc:
        what = f"cannot be read: {exc.strerror or exc}"
        next = "Was the model removed or replaced while it was read? Put it back, and start again"
        raise CheckpointError(str(exc.filename or paths[0]), what, next=next) from exc


def _stamp(paths: Sequence[str]) -> Stamp:
    found = {path: os.stat(path) for path in paths}
    return {path: [it.st_size, it.st_mtime_ns, it.st_ctime_ns, it.st_ino] for path, it in found.items()}


def _settled(stamp: Stamp, began: int) -> bool:
    """Whether a later change would show: two within one tick of the clock have the same time."""
    latest = max(max(times) for _, *times, _ in stamp.values())
    return began - latest > (COARSE_NS if latest % 10**9 == 0 else TICK_NS)


def _read(marker: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none there, or damaged: then it is not known
        return None
    return data if isinstance(data, dict) and isinstance(data.get("sha256"), str) else None


def _write(marker: Path, data: dict[str, Any]) -> None:
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=marker.parent, prefix=".", suffix=".partial", delete=False) as file:
            json.dump(data, file)
        os.replace(file.name, marker)
    except OSError:  # a full or read-only disk costs time later, and nothing else
        return
