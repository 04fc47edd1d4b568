"""One process at a time: a lock of the operating system, which ends with its process however that ends.

The file says who has it, or had it last, as host:pid: for whoever wonders what others wait for.
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
    """Held by one process at a time; the file stays.

    Args:
        path: of the lock; the folders above it are made.
        waiting: called once where another process holds it.

    Raises:
        CheckpointError: the file cannot be written, or its file system has no locks.
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
        os.close(handle)  # gives the lock back


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
    with suppress(OSError):  # a full disk has locks all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()}:{os.getpid()}\n".encode(), 0)


def _unusable(path: Path, error: OSError) -> CheckpointError:
    what = f"cannot be written and locked: {error.strerror or error}"
    return CheckpointError(str(path), what, next="Name a local folder in EVOSEARCH_CACHE")
