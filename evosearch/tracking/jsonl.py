"""Mirror of the ledger in a file of JSON lines: tracking without a server, readable with `tail -f`."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from evosearch.errors import TrackingError
from evosearch.search.ledger.events import Event
from evosearch.tracking.mirror import EventReader, Mirror

START = b'{"search_id": '  # of each line
CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # neither follow a link nor wait for a pipe's other end


class JsonLinesTracker(Mirror):
    """Mirrors one search to a file, one event per line: `search_id` and the fields of `Event`.

    An existing file is continued after its last complete line, so it contains no event twice. A file whose lines are
    not events of this search is refused, and left as it is.
    """

    def __init__(
        self,
        path: Path,
        open_reader: Callable[[], EventReader],
        search_id: str,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(_File(path, search_id), open_reader, search_id, notice)


def check_lines(path: Path, where: str) -> None:
    """Check that an existing file has JSON lines of a search; they may be of another one.

    Args:
        path: The file.
        where: Setting to name in errors.

    Raises:
        TrackingError: It is a link, or a file of another kind.
    """
    allowed, next = "A file of JSON lines that a search has written, or a new file", "Choose another name"
    try:
        descriptor = os.open(path, os.O_RDONLY | CAREFULLY)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise TrackingError(where, f"{path} cannot be read: {exc.strerror}", allowed, next) from None
    with os.fdopen(descriptor, "rb") as file:
        start = file.read(len(START)) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b"-"
    if not START.startswith(start):
        raise TrackingError(where, f"{path} has other data", allowed, next)


class _File:
    def __init__(self, path: Path, search_id: str) -> None:
        self._path, self._search_id = path, search_id
        self._start = START + json.dumps(search_id).encode() + b", "  # of each line

    def open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | CAREFULLY, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{self._path} is not a regular file")
            complete, seq = self._read(file)
            # A process killed while writing leaves a partial line; its event is written again.
            file.truncate(complete)
        return seq

    def _read(self, file: BinaryIO) -> tuple[int, int]:
        """Return the number of bytes up to the end of the last complete line, and the number of its event.

        Raises:
            ValueError: A line, or the start of an incomplete one, is not ours.
        """
        complete, seq = 0, 0
        for line in file:
            ours = line.startswith(self._start) or (not line.endswith(b"\n") and self._start.startswith(line))
            if not ours:
                what = "the events of another search" if line.startswith(START) else "other data"
                raise ValueError(f"{self._path} contains {what}, and is left as it is")
            if line.endswith(b"\n"):
                complete, seq = complete + len(line), int(json.loads(line)["seq"])
        return complete, seq

    def recall(self, events: Sequence[Event]) -> None:
        """Do nothing: lines do not depend on earlier events."""

    def advance(self, candidate: str, events: Iterable[Event]) -> None:
        """Do nothing: nobody waits for one candidate's lines, and they are in the order of events."""

    def write(self, events: Sequence[Event]) -> None:
        lines = [json.dumps({"search_id": self._search_id} | vars(event)) + "\n" for event in events]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
