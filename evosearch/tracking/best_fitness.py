"""Best fitness so far, in ask order rather than in the order in which candidates finish."""

import math


class BestFitness:
    """Best fitness of the candidates up to each one.

    A value is final once all candidates up to it are settled, so it never changes.

    >>> best = BestFitness()
    >>> best.settle(1, 4.0), best.settle(0, 2.0)
    ([], [(0, 2.0), (1, 4.0)])
    """

    def __init__(self) -> None:
        self.waiting: dict[int, float | None] = {}  # ask index → fitness, None for a failure; settled, not yet final
        self.next = 0  # first ask index that is not settled
        self._best: float | None = None

    def settle(self, index: int, fitness: float | None) -> list[tuple[int, float]]:
        """Settle a candidate and return (ask index, best fitness up to it) of those that are final now.

        Args:
            index: Its ask index; one that is settled already is ignored.
            fitness: Its fitness; None for one that has none of its own.
        """
        if index < self.next:
            return []
        self.waiting[index] = fitness
        found = []
        while self.next in self.waiting:
            value = self.waiting.pop(self.next)
            if value is not None and math.isfinite(value):
                self._best = value if self._best is None else max(self._best, value)
            if self._best is not None:
                found.append((self.next, self._best))
            self.next += 1
        return found
