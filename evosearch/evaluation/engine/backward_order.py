"""Order of backward passes: how long the activations of each forward pass are kept. Pure numpy.

A pass can go backwards once its items have all their log-likelihoods and all passes behind it have gone backwards.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from evosearch.evaluation.engine.loglikelihood import Passes
from evosearch.evaluation.engine.runs import Run

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class BackwardOrder:
    """The backward order of some passes.

    Attributes:
        runs: The passes' runs, in the order of the forward passes.
        starts: (passes + 1,) first pick of each pass, and the number of picks.
        owners: (picks,) item of each pick.
        last: (items,) last pass of each item.
        until: (passes,) last forward pass that must have run before each goes backwards.
    """

    runs: tuple[Run, ...]
    starts: tuple[int, ...]
    owners: Ints
    last: Ints
    until: tuple[int, ...]

    @classmethod
    def of(cls, laid: Passes, items: Ints) -> Self:
        """Compute the order of some passes.

        Args:
            laid: The passes.
            items: (requests,) item of each request.
        """
        runs, sizes = tuple(one.run.run for one in laid.passes), [len(one.pick_token) for one in laid.passes]
        starts = (0, *np.cumsum(sizes).tolist())
        owners, last = items[laid.pick_request], np.full(int(items.max()) + 1, -1, dtype=np.int64)
        np.maximum.at(last, owners, np.repeat(np.arange(len(sizes)), sizes))
        return cls(runs, starts, owners, last, tuple(_last_uses(runs, starts, owners, last)))

    def picks(self, index: int) -> slice:
        """Return the picks of a pass."""
        return slice(self.starts[index], self.starts[index + 1])

    @cached_property
    def most_open(self) -> int:
        """Largest number of tokens, with padding, of passes that have run forwards and not yet backwards."""
        most, waiting = 0, list[int]()
        for index in range(len(self.runs)):
            waiting.append(index)
            most = max(most, sum(self.runs[one].ids.size for one in waiting))
            while waiting and self.until[waiting[-1]] <= index:
                waiting.pop()
        return most


def _last_uses(runs: tuple[Run, ...], starts: tuple[int, ...], owners: Ints, last: Ints) -> list[int]:
    """For each pass, the last pass behind it or the last pass of one of its own items."""
    until, prefixes = list[int](), list[tuple[int, int]]()  # (tokens, pass)
    for index, run in enumerate(runs):
        while prefixes and prefixes[-1][0] > run.prefix_tokens:
            prefixes.pop()
        until.append(max(index, int(last[owners[starts[index] : starts[index + 1]]].max(initial=index))))
        for _, prefix in prefixes:
            until[prefix] = max(until[prefix], index)
        if run.is_prefix:
            prefixes.append((run.prefix_tokens + run.ids.shape[1], index))
    return until
