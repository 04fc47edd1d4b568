"""Weight matching: the permutation of a model with weights closest to another's (Ainsworth et al. 2023).

    max_P Σ_tensors ⟨θ₀, P(θ)⟩        by coordinate descent: one group at a time, the others fixed

Each step is a linear assignment, solved exactly. The residual stream starts from embeddings and head, whose rows are
tokens and need no permutation: a start from identity would stay in a poor optimum, as all other tensors have two
permuted axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from evosearch.merging.symmetries import RESIDUAL, Axes, Permutation, of_heads

MAX_SWEEPS = 30  # over all groups; five to ten are usual
LEAST_GAIN = 1e-9  # relative to the objective


@dataclass(frozen=True)
class Pair:
    """One tensor of both models.

    Attributes:
        axes: Group of each dimension.
        reference: Loads θ₀.
        model: Loads θ.
    """

    axes: Axes
    reference: Callable[[], Tensor]
    model: Callable[[], Tensor]


def match(pairs: Sequence[Pair], head_size: int, start: Permutation | None = None) -> Permutation:
    """Return the permutation of the model that brings its weights close to the reference's.

    Args:
        pairs: Every tensor of both models.
        head_size: Dimensions of an attention head.
        start: Permutation to start from, in place of the one by embeddings and head.
    """
    groups = list(dict.fromkeys(group for pair in pairs for group in pair.axes if group is not None))
    layers = [group for group in groups if group != RESIDUAL and not group.startswith("keys")]
    found = _by_tokens(pairs) if start is None else start
    before = -float("inf")
    for _ in range(MAX_SWEEPS):
        for group in layers:
            found = _improved(pairs, group, found, head_size)
        found = found.with_groups({RESIDUAL: assigned(similarity(pairs, RESIDUAL, found))})
        now = objective(pairs, found)
        if now <= before + LEAST_GAIN * abs(now):
            break
        before = now
    return found


def _by_tokens(pairs: Sequence[Pair]) -> Permutation:
    """Return the permutation of the residual stream by embeddings and head; empty without them."""
    outside = [pair for pair in pairs if None in pair.axes and RESIDUAL in pair.axes]
    none = Permutation({})
    return none.with_groups({RESIDUAL: assigned(similarity(outside, RESIDUAL, none))}) if outside else none


def objective(pairs: Sequence[Pair], permutation: Permutation) -> float:
    """Return Σ ⟨θ₀, P(θ)⟩ over all tensors."""
    moved = ((pair.reference(), permutation.apply(pair.model(), pair.axes)) for pair in pairs)
    return sum(float((one.double() * other.double()).sum()) for one, other in moved)


def similarity(pairs: Sequence[Pair], group: str, permutation: Permutation) -> Tensor:
    """Return the inner products of all units of a group (n, n), float64: the reference's by the model's."""
    total: Tensor | None = None
    for pair in pairs:
        if group not in pair.axes:
            continue
        dim = pair.axes.index(group)
        other = permutation.apply(pair.model(), pair.axes, leave=group)
        product = (_rows(pair.reference(), dim) @ _rows(other, dim).t()).double().cpu()
        total = product if total is None else total + product
    assert total is not None, "a group without tensors"
    return total


def _rows(tensor: Tensor, dim: int) -> Tensor:
    """Return what belongs to each unit along a dimension, as float32 rows."""
    return tensor.float().movedim(dim, 0).reshape(tensor.shape[dim], -1)


def _improved(pairs: Sequence[Pair], group: str, found: Permutation, head_size: int) -> Permutation:
    """Return the permutation with the best assignment in one group of a layer, the others fixed."""
    kind, _, layer = group.partition(".")
    if kind == "hidden":
        return found.with_groups({group: assigned(similarity(pairs, group, found))})
    keys = f"keys.{layer}"
    queries = by_head(similarity(pairs, group, found), head_size)
    groups = by_head(similarity(pairs, keys, found), head_size)
    chosen, within = heads_of(queries, groups)
    return found.with_groups({keys: of_heads(chosen, head_size), group: of_heads(within, head_size)})


def heads_of(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best order of key-value heads (K,) and of query heads (Q,), which stay with their key-value head.

    Args:
        queries: Similarity of query heads (Q, Q).
        keys: Similarity of key-value heads (K, K).
    """
    count = len(keys)
    each = len(queries) // count
    blocks = queries.view(count, each, count, each).transpose(1, 2)  # (K, K, Q/K, Q/K)
    orders = [[assigned(blocks[g, h]) for h in range(count)] for g in range(count)]
    gains = torch.tensor(
        [[float(blocks[g, h][torch.arange(each), orders[g][h]].sum()) for h in range(count)] for g in range(count)]
    )
    chosen = assigned(keys + gains)
    within = torch.cat([orders[g][int(h)] + int(h) * each for g, h in enumerate(chosen)])
    return chosen, within


def by_head(similarity: Tensor, size: int) -> Tensor:
    """Return the similarity of heads (n, n), of equal rows within them, from that of all rows (n · size, n · size)."""
    count = len(similarity) // size
    return similarity.view(count, size, count, size).diagonal(dim1=1, dim2=3).sum(dim=-1)


def assigned(similarity: Tensor) -> Tensor:
    """Return for each row the column that a best assignment gives it."""
    _, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return torch.from_numpy(columns)
