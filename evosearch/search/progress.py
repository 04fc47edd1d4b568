"""Progress of a search, and its encoding as log lines when the search runs as a job.

```
{"evosearch": "progress", "time": 1795408334.8, "stage": "search", "done": 12, "total": 18, "best": 0.81, …}
{"evosearch": "note", "time": 1795408335.1, "text": "7@search failed: score: …"}
{"evosearch": "result", "time": 1795408390.2, "exit": 0, "stopped": "candidates", "promoted": "11", …}
```

Times are seconds since the epoch. Other lines of a log are ignored.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

MARK = "evosearch"  # first key of every line; its value is the kind of the line


@dataclass(frozen=True)
class Progress:
    """Progress of one stage of a search."""

    stage: str  # baselines | search | answers | rescoring | validation | test
    done: int
    total: int | None
    best: float | None = None
    failed: int = 0
    per_minute: float | None = None
    seconds_left: float | None = None


class Watcher(Protocol):
    """Shows progress: a progress bar or a log file."""

    def update(self, progress: Progress) -> None:
        """Show progress."""

    def note(self, text: str) -> None:
        """Show a message."""

    def preparing(self, what: str, fraction: float) -> None:
        """Show that `fraction`, in [0, 1], of `what` (a model to train or fetch) is ready."""

    def close(self) -> None:
        """Stop showing anything."""


class Silent:
    """Watcher that shows nothing."""

    def update(self, progress: Progress) -> None:
        """Ignore progress."""

    def note(self, text: str) -> None:
        """Ignore a message."""

    def preparing(self, what: str, fraction: float) -> None:
        """Ignore progress of a preparation."""

    def close(self) -> None:
        """Do nothing."""


def line(kind: str, content: Mapping[str, Any]) -> str:
    """Return one line without its line break."""
    return json.dumps({MARK: kind, "time": round(time.time(), 3), **content})


def progress_line(progress: Progress) -> str:
    """Encode progress as a line; unknown values are left out."""
    return line("progress", {key: value for key, value in asdict(progress).items() if value is not None})


def read_line(text: str) -> dict[str, Any] | None:
    """Return the content of a line, None for a line of another program."""
    if not text.startswith(f'{{"{MARK}": '):
        return None
    try:
        found = json.loads(text)
    except ValueError:  # truncated
        return None
    return found if isinstance(found, dict) else None


def progress_of(content: Mapping[str, Any]) -> Progress:
    """Return the progress that a line's content encodes."""
    known: dict[str, Any] = {key: content[key] for key in Progress.__dataclass_fields__ if key in content}
    return Progress(**{"stage": "", "done": 0, "total": None, **known})
