"""The umask of everything that evosearch writes: by default only its owner can read it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evosearch.errors import InputError

VARIABLE = "EVOSEARCH_UMASK"
PRIVATE = 0o077


def umask_wanted() -> int:
    """Return $EVOSEARCH_UMASK, or 077.

    Raises:
        InputError: The variable is not an octal number from 0 to 077.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return PRIVATE
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= PRIVATE:
        allowed = "An octal number from 000 to 077, such as 027: files that the group can read"
        raise InputError(VARIABLE, f"got '{text}'", allowed, "Unset it for files that only you can read")
    return value


def set_umask() -> int:
    """Set this process's umask to the wanted one; return the previous one.

    Raises:
        InputError: See `umask_wanted`.
    """
    return os.umask(umask_wanted())


@contextmanager
def private_files() -> Iterator[None]:
    """Set the umask within the block, or within the decorated function, and restore it.

    It belongs to the process, so files that its other threads create meanwhile are private too.

    Raises:
        InputError: See `umask_wanted`.
    """
    before = set_umask()
    try:
        yield
    finally:
        os.umask(before)


def follow_umask(path: Path) -> None:
    """Give a file or folder, which a library made with a mode of its own, the mode that follows from the umask."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_current())


def _current() -> int:
    """Return this process's umask, as far as possible without setting it, which other threads would see."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration):  # not Linux
        value = os.umask(PRIVATE)
        os.umask(value)
        return value
