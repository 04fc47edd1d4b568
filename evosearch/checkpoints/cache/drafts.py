"""Drafts: hidden folders and files of work in progress, which become entries by rename.

A draft is locked by the process that writes it, so that those of killed processes are recognized and removed.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evosearch.checkpoints.cache.layout import KINDS
from evosearch.umask import follow_umask

SUFFIX = ".partial"


class Draft:
    """A new hidden folder `.NAME.….partial`, locked until it is closed or the process ends.

    Raises:
        OSError: It cannot be created.
    """

    def __init__(self, parent: Path, name: str) -> None:
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=SUFFIX, dir=parent))
            self._handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # without locks it is never taken for a killed process's
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            if self.folder.exists():  # otherwise it was removed before it was locked
                break
            os.close(self._handle)
        follow_umask(self.folder)

    def close(self) -> None:
        """Remove the folder, unless it was renamed, and release its lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._handle)


@contextmanager
def draft(parent: Path, name: str) -> Iterator[Path]:
    """A `Draft`, which is closed at the end.

    Raises:
        OSError: It cannot be created.
    """
    made = Draft(parent, name)
    try:
        yield made.folder
    finally:
        made.close()


def lock_file(handle: int) -> None:
    """Lock the file of a draft that is not a folder, until it is closed."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)


def abandoned(cache: Path) -> list[Path]:
    """Return the drafts in a cache that no process is writing."""
    places = [cache, *(cache / kind for kind in KINDS), *(cache / kind / "*" for kind in KINDS)]
    found = [path for place in places for path in cache.glob(str((place / f".*{SUFFIX}").relative_to(cache)))]
    return sorted(path for path in found if _is_abandoned(path))


def sweep(cache: Path) -> int:
    """Remove the drafts of killed processes; return how many."""
    left = abandoned(cache)
    for path in left:
        remove(path)
    return len(left)


def remove(path: Path) -> None:
    """Remove a file or folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_abandoned(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # removed or renamed meanwhile, another user's, or a link
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or without locks
        return False
    finally:
        os.close(handle)
    return True
