"""File locks, which the operating system releases when the owner exits, even by SIGKILL.

The file contains the current or last owner as host:pid, for debugging.
"""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evosearch.errors import CheckpointError

LOCKS = "locks"  # in the cache


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock between processes; the file is not removed afterwards.

    Args:
        path: Lock file; its parent folders are created.
        waiting: Called once if another process owns the lock.

    Raises:
        CheckpointError: The file cannot be written, or its file system does not support locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        _acquire(handle, path, waiting)
        yield
    finally:
        os.close(handle)  # releases the lock


def _acquire(handle: int, path: Path, waiting: Callable[[], None] | None) -> None:
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise _unusable(path, error) from None
    with suppress(OSError):  # locks also work on a full disk
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()}:{os.getpid()}\n".encode(), 0)


def _unusable(path: Path, error: OSError) -> CheckpointError:
    what = f"cannot be written and locked: {error.strerror or error}"
    return CheckpointError(str(path), what, next="Set EVOSEARCH_CACHE to a local folder")
