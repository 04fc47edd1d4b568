"""Mirror of the ledger in a file of JSON lines: tracking without a server, readable with `tail -f`."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from evosearch.search.ledger.events import Event
from evosearch.tracking.mirror import EventReader, Mirror


class JsonLinesTracker(Mirror):
    """Mirrors one search to a file, one event per line: `{"search_id", "seq", "time", "type", "payload"}`.

    An existing file is continued after its last complete line, so it contains no event twice.
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
        complete = 0  # bytes up to the end of the last complete line
        last: dict[str, object] = {}
        if self._path.exists():
            with self._path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        complete, last = complete + len(line), json.loads(line)
            # A process killed while writing leaves a partial line; its event is written again.
            os.truncate(self._path, complete)
        if last and last["search_id"] != self._search_id:
            raise ValueError(f"{self._path} contains the events of another search")
        seq = last.get("seq", 0)
        assert isinstance(seq, int)
        return seq

    def recall(self, events: Sequence[Event]) -> None:
        """Do nothing: lines do not depend on earlier events."""

    def write(self, events: Sequence[Event]) -> None:
        lines = [json.dumps({"search_id": self._search_id} | vars(event)) + "\n" for event in events]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
