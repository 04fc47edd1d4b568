"""Marks on a cache's entries: which are in use, when each was last used, and what it is.

A mark is the file `<cache>/uses/KIND-NAME.json`. A process that uses an entry holds a shared lock on its mark until the
process ends, however it ends; its modification time is the last use. Entries are removed only under an exclusive lock.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = "uses"  # in the cache
_held: dict[tuple[int, str], int] = {}  # process, mark → descriptor with the lock
_holding = threading.Lock()


@dataclass(frozen=True)
class Use:
    """What a mark tells of an entry.

    Attributes:
        what: Reference of the model; empty if unknown.
        source: Folder that it was made from; empty if it was made from several models.
        last_s: Time of the last use, in seconds since the epoch.
    """

    what: str
    source: str
    last_s: float


def hold(cache: Path, kind: str, name: str, what: str, source: str = "") -> None:
    """Mark an entry as used by this process, until it ends; to be called before the entry is looked up.

    Waits while the entry is being removed. Where the mark cannot be written, as in a cache that can only be read, there
    is none.
    """
    mark = _mark(cache, kind, name)
    key = os.getpid(), str(mark)
    with suppress(OSError), _holding:
        if key not in _held:
            _held[key] = _opened(mark, fcntl.LOCK_SH)
        handle = _held[key]
        os.utime(handle)
        text = json.dumps({"what": what, "source": source}).encode()
        if os.pread(handle, len(text) + 1, 0) != text:
            os.pwrite(handle, text, 0)
            os.ftruncate(handle, len(text))


def read(cache: Path, kind: str, name: str) -> Use | None:
    """Return what the mark of an entry tells; None if there is none, as for entries of earlier versions."""
    mark = _mark(cache, kind, name)
    try:
        last_s, found = mark.stat().st_mtime, json.loads(mark.read_bytes())
        return Use(str(found["what"]), str(found["source"]), last_s)
    except OSError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):  # killed before it was written
        return Use("", "", last_s)


def in_use(cache: Path, kind: str, name: str) -> bool:
    """Return whether a process uses an entry; also if this cannot be determined."""
    if not _mark(cache, kind, name).exists():
        return False
    with removing(cache, kind, name) as free:
        return not free


@contextmanager
def removing(cache: Path, kind: str, name: str, forget: bool = False) -> Iterator[bool]:
    """Keep others from using an entry; yields whether none does, so that it may be removed.

    Args:
        cache: The cache.
        kind: Kind of the entry.
        name: Name of the entry.
        forget: Remove the mark at the end, if no process uses the entry.
    """
    mark = _mark(cache, kind, name)
    try:
        known = mark.exists()
        handle = _opened(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or the cache cannot be written, or locked
        yield False
        return
    try:
        yield True
        if forget or not known:
            with suppress(OSError):
                mark.unlink()
    finally:
        os.close(handle)


def _mark(cache: Path, kind: str, name: str) -> Path:
    return cache / FOLDER / f"{kind}-{name}.json"


def _opened(mark: Path, lock: int) -> int:
    """Return a descriptor of a locked file that was not removed before it was locked."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            handle = os.open(mark, os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:  # another user's mark
            handle = os.open(mark, os.O_RDONLY)
        try:
            fcntl.flock(handle, lock)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(mark), os.fstat(handle)):
                    return handle
        except OSError:
            os.close(handle)
            raise
        os.close(handle)
