"""Who watches a search, and what they are shown."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """What a person watching wants to know."""

    stage: str  # controls | search | rescoring | validation | test
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

    def preparing(self, what: str, part: float) -> None:
        """`what` is being made ready (a model trained or fetched); `part` of it, in [0, 1], is done."""

    def close(self) -> None: ...


class Silent:
    """Nobody is watching."""

    def update(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None: ...

    def preparing(self, what: str, part: float) -> None: ...

    def close(self) -> None: ...
