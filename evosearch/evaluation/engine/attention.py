"""Forward passes of a model over runs: tree masks, plain rows, and the key-value caches of shared prefixes."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evosearch.checkpoints.families.registry import family_of_model
from evosearch.evaluation.engine.head import body
from evosearch.evaluation.engine.runs import Run

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as in a config's `layer_types`


@dataclass
class DeviceRun:
    """A run's tensors on a device, created once."""

    run: Run
    ids: Tensor  # (B, T)
    positions: Tensor  # (B, T)
    ends: Tensor | None  # (B, T)

    @classmethod
    def on(cls, device: torch.device, run: Run) -> "DeviceRun":
        """Copy a run to a device."""
        ids, positions = (torch.from_numpy(array.copy()).to(device) for array in (run.ids, run.positions))
        return cls(run, ids, positions, None if run.ends is None else torch.from_numpy(run.ends).to(device))


@dataclass
class KVStack:
    """Caches of the nested prefixes that lead to a run; the last one is the deepest."""

    stack: list[tuple[int, Any]] = field(default_factory=list)  # (tokens, cache)

    def at(self, tokens: int) -> Any | None:
        """Drop deeper caches and return the cache of the prefix of length `tokens`; None for the empty prefix."""
        while self.stack and self.stack[-1][0] > tokens:
            self.stack.pop()
        assert tokens == (self.stack[-1][0] if self.stack else 0), "runs are not in depth-first order"
        return self.stack[-1][1] if self.stack else None


def forward(model: Any, on_device: DeviceRun, prefixes: KVStack, cached: bool = False) -> tuple[Tensor, Any | None]:
    """Run a model on one run.

    Args:
        model: A causal transformers model in evaluation mode.
        on_device: The run, on the model's device.
        prefixes: Caches of earlier runs; this run's cache is added if later runs need it.
        cached: Always return a cache; otherwise it is None if the run neither has a prefix nor is one.

    Returns:
        Final hidden states (B · T, hidden size), and the cache of the run and its prefix.
    """
    run = on_device.run
    prefix = prefixes.at(run.prefix_tokens)
    cache = None
    if prefix is not None:
        cache = fork(prefix)
        if on_device.ids.shape[0] > 1:
            cache.batch_repeat_interleave(on_device.ids.shape[0])
    elif run.is_prefix or cached:
        cache = new_cache(model, by_mask=run.ends is not None)
    mask = None
    if run.ends is not None:
        assert on_device.ends is not None
        mask = _tree_mask(model, on_device.ends, on_device.positions, run.prefix_tokens, int(run.positions.max()))
    out = body(model)(
        input_ids=on_device.ids,
        attention_mask=mask,
        position_ids=on_device.positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    if run.is_prefix:
        prefixes.stack.append((run.prefix_tokens + on_device.ids.shape[1], cache))
    hidden: Tensor = out.last_hidden_state  # (B, T, hidden size)
    return hidden.flatten(0, 1), cache


def new_cache(model: Any, by_mask: bool) -> Any:
    """Return an empty key-value cache.

    With custom masks, every layer keeps every token; otherwise each layer keeps what its kind of attention needs.
    """
    from transformers import DynamicCache

    config = text_config(model)
    plain = not window_of(config) and layer_kinds(config) == {FULL} and family_of_model(model) is not None
    return DynamicCache() if by_mask or plain else DynamicCache(config=model.config)


def fork(cache: Any) -> Any:
    """Return an independent copy of a cache, sharing its tensors if updates replace rather than modify them."""
    if not shares_tensors(cache):
        return copy.deepcopy(cache)
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def shares_tensors(cache: Any) -> bool:
    """Return whether updates of a cache replace its tensors rather than modify them."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def _tree_mask(model: Any, ends: Tensor, positions: Tensor, prefix: int, deepest: int) -> Tensor | dict[str, Tensor]:
    """Masks (B, 1, T, prefix + T) of subtrees: each node sees the `prefix` cached tokens and its own path."""
    rows, width = ends.shape
    order = torch.arange(width, device=ends.device)
    path = (order[None, :] <= order[:, None]) & (order[:, None] < ends[:, None, :])  # (B, T, T)
    seen = torch.cat([path.new_ones(rows, width, prefix), path], dim=2)
    before = torch.arange(prefix, device=ends.device).expand(rows, prefix)
    keys = torch.cat([before, positions], dim=1)  # (B, prefix + T)
    return masks(model, seen, positions, keys, deepest)


def masks(model: Any, seen: Tensor, queries: Tensor, keys: Tensor, deepest: int) -> Tensor | dict[str, Tensor]:
    """Return the value of `attention_mask`: one additive mask (B, 1, Q, K), or one for each kind of layer.

    Args:
        model: The model to be run.
        seen: (B, Q, K) keys that each query attends to with full attention.
        queries: (B, Q) positions of the queries.
        keys: (B, K) positions of the keys; a layer with a window of w attends to keys at distance below w.
        deepest: Largest position of a query; longer sliding windows have no effect.
    """
    config = text_config(model)
    kinds, window = layer_kinds(config), window_of(config)
    found = {FULL: seen}
    if SLIDING in kinds and window and deepest >= window:
        found[SLIDING] = seen & (queries.int()[:, :, None] - keys.int()[:, None, :] < window)
    if kinds == {SLIDING}:
        return _additive(found.get(SLIDING, seen), model.dtype)
    if kinds == {FULL} or found.get(SLIDING, seen) is seen:
        return _additive(seen, model.dtype)
    return {kind: _additive(mask, model.dtype) for kind, mask in found.items()}


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean (B, Q, K) → (B, 1, Q, K) to add to attention scores: 0, or the dtype's most negative number."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def text_config(model: Any) -> Any:
    """Return the config of a model's text decoder; multimodal models nest it."""
    return model.config.get_text_config(decoder=True)


def _own(config: Any, name: str) -> Any:
    """A key that this config class defines; checkpoints may contain other keys, which their models ignore."""
    return getattr(config, name, None) if hasattr(type(config), name) else None


def window_of(config: Any) -> int | None:
    """Return the window in tokens of layers with local attention; None if every layer has full attention."""
    found = [_own(config, name) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in found if size), default=None)


def layer_kinds(config: Any) -> set[str]:
    """Return the kinds of attention among a model's layers."""
    kinds = _own(config, "layer_types")
    if kinds:
        return set(kinds)
    return {SLIDING} if _own(config, "sliding_window") else {FULL}
