"""Time of copying as many bytes as a merge reads and writes, by torch's copy on the same threads."""

import time

import torch

SIZE = 1 << 28  # bytes of the buffer: beyond any cache of a core


class Copying:
    """Measured copy bandwidth of this machine, at this moment."""

    def __init__(self) -> None:
        self._source = torch.ones(SIZE, dtype=torch.uint8)
        self._target = torch.zeros(SIZE, dtype=torch.uint8)

    def seconds(self, moved: int) -> float:
        """Return the time of reading and writing `moved` bytes in total: the best of three copies."""
        best = min(self._once() for _ in range(3))
        return best * moved / (2 * SIZE)

    def _once(self) -> float:
        started = time.perf_counter()
        self._target.copy_(self._source)
        return time.perf_counter() - started
