"""Who watches a search, and what they are shown; and how a search that runs elsewhere tells it, line by line.

```
{"evosearch": "progress", "time": 1795408334.8, "stage": "search", "done": 12, "total": 18, "best": 0.81, …}
{"evosearch": "note", "time": 1795408335.1, "text": "7@search failed: score: …"}
{"evosearch": "result", "time": 1795408390.2, "exit": 0, "stopped": "candidates", "promoted": "11", …}
```

Times are seconds since the epoch. Whatever else a log holds is not ours.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

MARK = "evosearch"  # the first key of every line; its value says what the line is


@dataclass(frozen=True)
class Progress:
    """What a person watching wants to know."""

    stage: str  # baselines | search | rescoring | validation | test
    done: int
    total: int | None
    best: float | None = None
    failed: int = 0
    per_minute: float | None = None
    seconds_left: float | None = None


class Watcher(Protocol):
    """Somebody watching: a progress bar, a log file, nobody."""

    def update(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None: ...

    def preparing(self, what: str, fraction: float) -> None:
        """`what` is being made ready (a model trained or fetched); `part` of it, in [0, 1], is done."""

    def close(self) -> None: ...


class Silent:
    """Nobody is watching."""

    def update(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None: ...

    def preparing(self, what: str, fraction: float) -> None: ...

    def close(self) -> None: ...


def line(kind: str, content: Mapping[str, Any]) -> str:
    """One line, without its end."""
    return json.dumps({MARK: kind, "time": round(time.time(), 3), **content})


def progress_line(progress: Progress) -> str:
    """What is not known is left out."""
    return line("progress", {key: value for key, value in asdict(progress).items() if value is not None})


def read_line(text: str) -> dict[str, Any] | None:
    """The content of a line of ours; None of anybody else's."""
    if not text.startswith(f'{{"{MARK}": '):
        return None
    try:
        found = json.loads(text)
    except ValueError:  # cut off
        return None
    return found if isinstance(found, dict) else None


def progress_of(content: Mapping[str, Any]) -> Progress:
    """What a line of progress tells."""
    known: dict[str, Any] = {key: content[key] for key in Progress.__dataclass_fields__ if key in content}
    return Progress(**{"stage": "", "done": 0, "total": None, **known})
