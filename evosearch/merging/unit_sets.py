"""Sets of units of two models that ZipIt! merges into one unit each, by correlations of activations on a sample.

| units | matched | activations |
|---|---|---|
| hidden units of an MLP | greedily, also within a model | inputs of `down` |
| key-value heads with their query heads | greedily, also within a model | inputs of `o`, in equal dimensions |
| residual stream | each with one of the other model, by a linear assignment | inputs of all linear layers, normed |

The norms of the residual stream divide by the length of all of its units, so only permutations keep its function; it is
the feature space of every layer, so it has one matching. Dimensions within a head stay, because rotary positions pair
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evosearch.merging.activation_matching import correlation
from evosearch.merging.greedy_matching import TIE, Similarities, matched, standardized
from evosearch.merging.kernels import one_thread
from evosearch.merging.symmetries import of_heads
from evosearch.merging.weight_matching import assigned

Load = Callable[[], Tensor]


@dataclass(frozen=True)
class Sets:
    """Sets of the units of two models: as many as a model has units.

    Attributes:
        of: Of each model's units, the set (n,): 0 to n − 1. Every set has a unit.
    """

    of: tuple[Tensor, Tensor]

    @classmethod
    def halves(cls, sets: Tensor) -> "Sets":
        """Return those of a concatenation of both models' units (2n,)."""
        one, other = sets.chunk(2)
        return cls((one, other))

    def rows(self, size: int) -> "Sets":
        """Return those of rows, of which every unit has `size`."""
        one, other = (of_heads(sets, size) for sets in self.of)
        return Sets((one, other))

    @property
    def count(self) -> int:
        """Number of sets, and of units of a model."""
        return len(self.of[0])


def of_hidden(first: Tensor, second: Tensor, alpha: float, beta: float) -> Sets:
    """Return the sets of hidden units whose activations (tokens, n) correlate; see `matched`."""
    return Sets.halves(matched(Similarities.correlations(first, second), alpha, beta))


def of_attention(first: Tensor, second: Tensor, size: int, keys: int, alpha: float, beta: float) -> tuple[Sets, Sets]:
    """Return the sets of rows of key-value heads (keys · size) and of query heads (queries · size).

    Key-value heads are matched, by the mean correlation of their query heads in the best order. The query heads of a
    set take the order of its first key-value head.

    Args:
        first: Outputs of the first model's heads (tokens, queries · size).
        second: Of the second model.
        size: Dimensions of a head.
        keys: Number of key-value heads.
        alpha: See `matched`.
        beta: See `matched`.
    """
    total = by_query(first, second, size)
    groups, each = 2 * keys, len(total) // (2 * keys)
    blocks = total.view(groups, each, groups, each).transpose(1, 2)  # (2K, 2K, Q/K, Q/K)
    orders, alike = dict[tuple[int, int], Tensor](), torch.eye(groups, dtype=torch.float64)
    for g in range(groups):
        for h in range(g + 1, groups):
            block = blocks[g, h] + TIE * torch.eye(each, dtype=torch.float64)
            orders[g, h] = assigned(block)
            alike[g, h] = alike[h, g] = block[torch.arange(each), orders[g, h]].mean()
    chosen = matched(Similarities.of(alike), alpha, beta)
    queries = torch.empty(groups, each, dtype=torch.int64)
    for h, own in enumerate(chosen.tolist()):
        g = int((chosen == own).nonzero()[0])
        order = orders[g, h] if g < h else torch.arange(each)
        queries[h, order] = own * each + torch.arange(each)
    return Sets.halves(chosen).rows(size), Sets.halves(queries.view(-1)).rows(size)


def by_query(first: Tensor, second: Tensor, size: int) -> Tensor:
    """Return the mean correlations of equal dimensions of all query heads of both models (2Q, 2Q), float64.

    Heads of equal index in both models are preferred by `TIE`.
    """
    both = torch.cat([x.float().reshape(len(x), -1, size) for x in (first, second)], dim=1)  # (tokens, 2Q, size)
    total = torch.zeros(both.shape[1], both.shape[1], dtype=torch.float64)
    with one_thread():
        for dimension in range(size):
            x = standardized(both[:, :, dimension].clone())
            total += (x.t() @ x).double()
    total /= size
    half = len(total) // 2
    total[:half, half:] += TIE * torch.eye(half, dtype=torch.float64)
    total[half:, :half] += TIE * torch.eye(half, dtype=torch.float64)
    return total


def of_residual(inputs: Sequence[tuple[Load, Load]]) -> Sets:
    """Return pairs of units of the residual stream, in the first model's order.

    Args:
        inputs: Of every linear layer that reads the residual stream, what loads its inputs (tokens, n) in both models.
    """
    total: Tensor | None = None
    with one_thread():
        for first, second in inputs:
            own = correlation(first(), second())
            total = own if total is None else total.add_(own)
    assert total is not None, "a model without linear layers"
    total.diagonal().add_(TIE)
    pairs = assigned(total)
    return Sets((torch.arange(len(pairs)), pairs.argsort()))
