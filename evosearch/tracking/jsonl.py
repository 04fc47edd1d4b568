"""The ledger as JSON lines: for a person with `tail -f`, and the tracker to use where no server is wanted."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from evosearch.search.ledger.events import Event
from evosearch.tracking.mirror import EventReader, Mirror


class JsonLinesTracker(Mirror):
    """Mirrors a search to a file, one event a line: `{"search_id", "seq", "time", "type", "payload"}`.

    A file that exists is continued after its last whole line, so no event is in it twice. It belongs to one search.
    """

    def __init__(
        self,
        path: Path,
        open_reader: Callable[[], EventReader],
        search_id: str,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(_File(path, search_id), open_reader, search_id, notice)


class _File:
    def __init__(self, path: Path, search_id: str) -> None:
        self._path, self._search_id = path, search_id

    def open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0  # bytes up to the end of the last whole line
        last: dict[str, object] = {}
        if self._path.exists():
            with self._path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        whole, last = whole + len(line), json.loads(line)
            # A process killed while writing leaves a part of a line; its event is written again, whole.
            os.truncate(self._path, whole)
        if last and last["search_id"] != self._search_id:
            raise ValueError(f"{self._path} holds the events of another search")
        seq = last.get("seq", 0)
        assert isinstance(seq, int)
        return seq

    def recall(self, events: Sequence[Event]) -> None:
        """Lines need nothing of those before them."""

    def write(self, events: Sequence[Event]) -> None:
        lines = [json.dumps({"search_id": self._search_id} | vars(event)) + "\n" for event in events]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
