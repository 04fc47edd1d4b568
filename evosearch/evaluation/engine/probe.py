"""Probe runs that measure a model's memory use: arbitrary tokens, packed as densely as in any real run."""

from typing import Any

import numpy as np
import torch

from evosearch.evaluation.engine.attention import DeviceRun, KVStack, forward
from evosearch.evaluation.engine.head import head_logits
from evosearch.evaluation.engine.modes import mode_of
from evosearch.evaluation.engine.runs import Run

_PIECE = 128  # tokens of one sequence


@torch.inference_mode()
def run_packed(model: Any, tokens: int, longest: int) -> dict[torch.device, int]:
    """Run a number of tokens in one forward pass, in the model's execution mode: one row of a tree, or plain rows.

    The widest run of a tree is a single row, in which each token has a mask entry for every other one, as with prompts.

    Args:
        model: A causal transformers model in evaluation mode.
        tokens: Number of tokens to run.
        longest: The model's context length in tokens.

    Returns:
        Bytes of the keys and values that the run left in the cache, by device.
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
    hidden, cache = forward(model, DeviceRun.on(model.device, run), KVStack(), cached=True)
    del hidden
    used: dict[torch.device, int] = {}
    for layer in getattr(cache, "layers", ()):
        for tensor in (layer.keys, layer.values):
            used[tensor.device] = used.get(tensor.device, 0) + tensor.nbytes
    return used


@torch.inference_mode()
def logits_of(model: Any, reads: int) -> None:
    """Compute the logits of `reads` positions at once, and reduce them as for log-likelihoods."""
    width = model.get_output_embeddings().in_features
    hidden = torch.zeros(reads, width, dtype=model.dtype, device=model.device)
    logits = head_logits(model, hidden)  # (reads, V) float32
    logits.logsumexp(dim=-1)
    logits.argmax(dim=-1)
