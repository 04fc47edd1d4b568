"""A watcher that disturbs a search while it runs."""

from collections.abc import Callable

from evosearch.search.progress import Progress, Silent


class Saboteur(Silent):
    """Watcher that calls functions at given numbers of scored candidates, or baselines; the search waits for them."""

    def __init__(self, acts: dict[int, Callable[[], None]], stage: str = "search") -> None:
        self.acts, self.stage, self.notes = dict(acts), stage, list[str]()

    def update(self, progress: Progress) -> None:
        if progress.stage == self.stage:
            for count in [count for count in self.acts if progress.done >= count]:
                self.acts.pop(count)()

    def note(self, text: str) -> None:
        self.notes.append(text)
