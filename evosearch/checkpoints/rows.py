"""Rows of tensors, read without the rest of the tensor: pages of mapped files, and products of adapters' factors."""

import torch

from evosearch.checkpoints.overlay import Overlay
from evosearch.checkpoints.reader import Checkpoint


@torch.no_grad()
def rows(checkpoint: Checkpoint, name: str, start: int, stop: int, most: int) -> torch.Tensor | None:
    """Return rows `start` to `stop` of a tensor.

    Args:
        checkpoint: The model.
        name: The tensor.
        start: First row.
        stop: Row after the last.
        most: Largest number of elements of a tensor that is computed in full for its rows.

    Returns:
        (stop − start, …), for a tensor of one dimension its elements; None if more than `most` elements would be
        computed, for a tensor that is neither stored nor of low rank.
    """
    while (under := checkpoint.shares(name)) is not None:
        checkpoint = under
    if not isinstance(checkpoint, Overlay):
        return checkpoint.load(name)[start:stop]
    change = checkpoint.low_rank(name)
    if change is not None:
        below, factors = change
        a, b = factors()  # (r, in), (out, r)
        theta = rows(below, name, start, stop, most)
        transposed = below.family.transposed  # stored as (in, out): rows are inputs
        delta = a.T[start:stop] @ b.T if transposed else b[start:stop] @ a
        return None if theta is None else theta.to(delta.dtype) + delta
    if torch.Size(checkpoint.tensors[name].shape).numel() > most:
        return None
    return checkpoint.load(name)[start:stop]
