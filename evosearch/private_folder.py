"""Temporary folders for their owner only, which are also removed if their process was killed.

Such a folder has the mode 0700 and a lock, which its process holds. The next one that makes a folder of the same kind
removes the folders whose process has ended.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

LOCK = "lock"  # file in the folder
NEW_S = 3600.0  # seconds in which a folder without a lock may be one that is being made
ATTEMPTS, PAUSE_S = 20, 0.25  # of removing a folder in which ending processes still write


class PrivateFolder:
    """One folder, made by `make`.

    Attributes:
        path: Its path.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock, self._owner = path, lock, os.getpid()

    @classmethod
    def make(cls, prefix: str, place: Path | None = None) -> Self:
        """Make a folder, and remove those of the same prefix whose processes have ended.

        Args:
            prefix: Start of its name; eight random characters follow.
            place: Folder to make it in; default: that for temporary files.

        Raises:
            OSError: `place` cannot be written.
        """
        place = place or Path(tempfile.gettempdir())
        sweep(prefix, place)
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))  # mode 0700
        return cls(path, _locked(path / LOCK, os.O_CREAT))

    def remove(self) -> None:
        """Remove the folder, in the process that made it; waits a few seconds for others that still write there."""
        if os.getpid() != self._owner:
            return
        for _ in range(ATTEMPTS):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
            time.sleep(PAUSE_S)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def sweep(prefix: str, place: Path) -> None:
    """Remove the folders of ended processes of this user. Failures are ignored: the next call tries again."""
    for folder in place.glob(f"{prefix}*"):
        with suppress(OSError):
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and _is_left(folder, about.st_mtime):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path, changed: float) -> bool:
    """Return whether the process of a folder has ended."""
    if not (folder / LOCK).exists():
        return time.time() - changed > NEW_S
    try:
        os.close(_locked(folder / LOCK))
    except BlockingIOError:
        return False
    return True


def _locked(file: Path, more: int = 0) -> int:
    """Open a file and lock it until its descriptor is closed. Child processes do not inherit it.

    Raises:
        BlockingIOError: Another process has the lock.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | more, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
