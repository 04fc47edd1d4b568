"""Watchers of searches that are part of a larger run."""

from dataclasses import replace

from evosearch.search.progress import Progress, Silent, Watcher
from evosearch.spec.spec import SearchSpec


class StageWatcher:
    """Watcher that adds the name of a stage, or of a placebo, to progress."""

    def __init__(self, inner: Watcher, stage: SearchSpec) -> None:
        assert stage.stage is not None
        self._inner, self._name = inner, stage.stage.name

    def update(self, progress: Progress) -> None:
        """Show progress of the stage."""
        self._inner.update(replace(progress, stage=f"{self._name}: {progress.stage}"))

    def note(self, text: str) -> None:
        """Show a message."""
        self._inner.note(text)

    def preparing(self, what: str, fraction: float) -> None:
        """Show progress of a preparation."""
        self._inner.preparing(what, fraction)

    def close(self) -> None:
        """Stop showing anything."""
        self._inner.close()


class OnlyPreparing(Silent):
    """Watcher that passes on only preparations, where another search gives the same notes."""

    def __init__(self, inner: Watcher) -> None:
        self._inner = inner

    def preparing(self, what: str, fraction: float) -> None:
        """Show progress of a preparation."""
        self._inner.preparing(what, fraction)
