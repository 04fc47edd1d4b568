"""Runs of a model that show how much memory runs take: rows as full as they are ever packed, of meaningless tokens."""

from typing import Any

import numpy as np
import torch

from evosearch.evaluation.engine.attention import KVStack, Placed, forward, mode_of
from evosearch.evaluation.engine.head import head_logits
from evosearch.evaluation.engine.prefix_tree import Run

_PIECE = 128  # tokens of one sequence


@torch.inference_mode()
def run_packed(model: Any, tokens: int, longest: int) -> dict[torch.device, int]:
    """Run so many tokens at once, in the way that the model is run in: one row of a tree, or plain rows.

    A tree's widest run is one row, in which each token has a mask entry for every other: prompts are read like that.

    Args:
        longest: tokens of the longest sequence that the model takes.

    Returns:
        Bytes of the keys and values that the run left, by device.
    """
    piece = max(min(longest, _PIECE), 1)
    rows, vocabulary = tokens // piece, int(model.get_input_embeddings().num_embeddings)
    ids = (np.arange(rows * piece, dtype=np.int64) % vocabulary).reshape(rows, piece)
    positions = np.broadcast_to(np.arange(piece), ids.shape)
    if mode_of(model, tuple(ids[0].tolist()), piece) == "tree":
        ends = np.repeat(np.arange(piece, rows * piece + 1, piece), piece)[None]  # each sequence ends its own path
        run = Run(ids.reshape(1, -1), positions.reshape(1, -1), ends, 0, False, ids.size)
    else:
        run = Run(ids, positions, None, 0, False, ids.size)
    hidden, cache = forward(model, Placed.on(model.device, run), KVStack(), cached=True)
    del hidden
    held: dict[torch.device, int] = {}
    for layer in getattr(cache, "layers", ()):
        for part in (layer.keys, layer.values):
            held[part.device] = held.get(part.device, 0) + part.nbytes
    return held


@torch.inference_mode()
def logits_of(model: Any, reads: int) -> None:
    """Make the logits of so many positions at once, and read them as log-likelihoods are read."""
    width = model.get_output_embeddings().in_features
    hidden = torch.zeros(reads, width, dtype=model.dtype, device=model.device)
    logits = head_logits(model, hidden)  # (reads, V) float32
    logits.logsumexp(dim=-1)
    logits.argmax(dim=-1)
