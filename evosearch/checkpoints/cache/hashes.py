"""Cache of file hashes, so that unchanged files are not read again.

A marker is a JSON file in the cache, for a set of files that are hashed together:

    {"version": 1, "files": {path: [size in bytes, mtime_ns, ctime_ns, inode]}, "sha256": "…"}

It is valid as long as none of these values changes. Programs cannot set ctime, so replacing a file by one with an old
mtime (`cp -p`, `rsync -t`) is detected, and nodes that share a cache do not confuse their files.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from evosearch.checkpoints.cache.drafts import SUFFIX, lock_file
from evosearch.checkpoints.cache.layout import HASHES
from evosearch.errors import CheckpointError

VERSION = 1  # of the hashing method; a change invalidates old markers
TICK_NS = 50 * 10**6  # file times advance with the kernel's clock (up to 10 ms); with a margin
COARSE_NS = 2 * 10**9  # for file systems that store whole seconds

Found = TypeVar("Found")
Stamp = dict[str, list[int]]  # path → [size, mtime_ns, ctime_ns, inode]


class Hashes:
    """Hashes of one cache; if it cannot be written, files are hashed each time."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / HASHES

    def of(self, files: Sequence[Path], compute: Callable[[], str]) -> str:
        """Return the hash of these files, computed unless it is cached.

        Args:
            files: All files that `compute` reads.
            compute: Returns the hash.

        Raises:
            CheckpointError: A file cannot be read, or was removed while it was hashed.
        """
        paths = sorted({os.path.realpath(path) for path in files})
        marker = self._folder / f"{hashlib.sha256(json.dumps(paths).encode()).hexdigest()}.json"
        try:
            stamp, began = _stamp(paths), time.time_ns()
        except OSError:  # reported when they are read
            return _checked(compute, paths)
        known = _read(marker)
        if known is not None and (known.get("version"), known.get("files")) == (VERSION, stamp):
            with suppress(OSError):  # of another user
                os.utime(marker)  # its last use
            return str(known["sha256"])
        found = _checked(compute, paths)
        after = _checked(partial(_stamp, paths), paths)
        if _settled(stamp, began) and after == stamp:  # no file was written during the read or shortly before
            _write(marker, {"version": VERSION, "files": stamp, "sha256": found})
        return found


def _checked(read: Callable[[], Found], paths: Sequence[str]) -> Found:
    """Return the result of `read`; convert an OSError to a CheckpointError that names the file."""
    try:
        return read()
    except OSError as exc:
        what = f"cannot be read: {exc.strerror or exc}"
        next = "If the model was removed or replaced in the meantime, restore it and start again"
        raise CheckpointError(str(exc.filename or paths[0]), what, next=next) from exc


def _stamp(paths: Sequence[str]) -> Stamp:
    found = {path: os.stat(path) for path in paths}
    return {path: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for path, stat in found.items()}


def _settled(stamp: Stamp, began: int) -> bool:
    """Return whether a later change would be detected: two changes within one clock tick have the same time."""
    latest = max(max(times) for _, *times, _ in stamp.values())
    return began - latest > (COARSE_NS if latest % 10**9 == 0 else TICK_NS)


def _read(marker: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # missing or damaged
        return None
    return data if isinstance(data, dict) and isinstance(data.get("sha256"), str) else None


def _write(marker: Path, data: dict[str, Any]) -> None:
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=marker.parent, prefix=".", suffix=SUFFIX, delete=False) as file:
            lock_file(file.fileno())
            json.dump(data, file)
        os.replace(file.name, marker)
    except OSError:  # on a full or read-only disk the hash is computed again
        return
