"""Time of copying as many bytes as a merge reads and writes, by torch's copy on the same threads."""

import statistics
from collections.abc import Callable

import torch

Clock = Callable[[], float]  # seconds

SIZE = 1 << 28  # bytes of the buffer: beyond any cache of a core


class Copying:
    """Measured copy bandwidth of this machine, at this moment."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._source = torch.ones(SIZE, dtype=torch.uint8)
        self._target = torch.zeros(SIZE, dtype=torch.uint8)

    def seconds(self, moved: int) -> float:
        """Return the time of reading and writing `moved` bytes in total: the median of three copies."""
        return statistics.median(self._once() for _ in range(3)) * moved / (2 * SIZE)

    def _once(self) -> float:
        started = self._clock()
        self._target.copy_(self._source)
        return self._clock() - started
