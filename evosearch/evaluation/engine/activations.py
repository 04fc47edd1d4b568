"""Memory of the activations that a forward pass keeps for its backward pass, measured once for each model.

bytes(n) = n · token + n² · pair        n tokens in one row
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from evosearch.evaluation.engine.attention import DeviceRun, KVStack, forward, text_config
from evosearch.evaluation.engine.recomputation import layers_of
from evosearch.evaluation.engine.runs import Run
from evosearch.evaluation.engine.score_options import Mode

_FEW = 24  # tokens of the smaller of two measured passes; the other one has twice as many


@dataclass(frozen=True)
class Activations:
    """Bytes that are kept for each token of a pass, and for each pair of tokens of one row."""

    token: float
    pair: float

    def tokens(self, limit: float, read: float) -> int:
        """Return the number of tokens whose activations fit.

        Args:
            limit: Bytes for activations.
            read: Further bytes of each token, for logits.
        """
        token = self.token + read
        if not self.pair:
            return int(limit / token) if token else 1 << 40
        return int((math.sqrt(token**2 + 4 * self.pair * limit) - token) / (2 * self.pair))

    def recomputed(self, model: Any) -> "Activations":
        """Return the same with layers recomputed: every layer's input, its keys and values, and one layer in full."""
        count = max(len(layers_of(model)), 1)
        kept = 3 * count * text_config(model).hidden_size * torch.finfo(model.dtype).bits / 8
        return Activations(self.token / count + kept, self.pair / count)


_measured: WeakKeyDictionary[Any, dict[int, Activations]] = WeakKeyDictionary()


def activations_of(model: Any, mode: Mode) -> Activations:
    """Measure a model's activations on two short passes, once for each set of differentiable parameters.

    Args:
        model: A causal transformers model in evaluation mode, whose parameters require gradients where needed.
        mode: The execution mode of the passes to come.
    """
    asked = [parameter.requires_grad for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    known, key = _measured.setdefault(model, {}), hash((mode, *asked, *hooks))
    if key not in known:
        size = max(min(_FEW, getattr(text_config(model), "max_position_embeddings", _FEW) // 2), 1)
        few, many = (_kept(model, mode, tokens) for tokens in (size, 2 * size))
        pair = max(many - 2 * few, 0) / (2 * size**2)  # from an + bn² and 2an + 4bn²
        known[key] = Activations(max(few - pair * size**2, 0) / size, pair)
    return known[key]


def _kept(model: Any, mode: Mode, tokens: int) -> int:
    """Bytes that one pass keeps for its backward pass."""
    ids = (np.arange(tokens, dtype=np.int64) % model.get_input_embeddings().num_embeddings)[None]
    ends = np.full((1, tokens), tokens) if mode == "tree" else None
    run = Run(ids, np.arange(tokens)[None], ends, 0, False, tokens)
    with torch.enable_grad(), _counted(model) as sizes:
        hidden = forward(model, DeviceRun.on(model.device, run), KVStack())[0]
        found = sum(sizes.values())
        del hidden
    return found


@contextmanager
def _counted(model: Any) -> Iterator[dict[int, int]]:
    """Collect the storages of tensors that autograd keeps, except the model's own: address → bytes."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # without its graph, which would be a reference cycle

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes
