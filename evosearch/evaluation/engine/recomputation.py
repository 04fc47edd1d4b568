"""Recomputation of layers in the backward pass: only their inputs are kept (Chen et al. 2016, arXiv:1604.06174)."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from evosearch.evaluation.engine.head import body


def layers_of(model: Any) -> list[nn.Module]:
    """Return the decoder's layers, in order; empty if transformers does not mark them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in body(model).modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Recompute every layer in the backward passes of forwards within this context.

    transformers' own option works only in training mode and without caches.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.forward = partial(_forward, layer.forward, _position(layer))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is used again


def _forward(own: Callable[..., Any], position: int, *args: Any, **kwargs: Any) -> Any:
    """Run a layer that adds keys and values to a cache, such that running it again starts from the same cache."""
    from transformers import Cache

    kwargs |= dict(zip(signature(own).parameters, args, strict=False))
    name = next((key for key, value in kwargs.items() if isinstance(value, Cache)), None)  # differs between families
    if name is None:
        return checkpoint(own, use_reentrant=False, preserve_rng_state=False, **kwargs)
    cache = kwargs.pop(name)
    before = copy.copy(cache.layers[position]) if position < len(cache.layers) else None
    made: list[Any] = []

    def run(**inputs: Any) -> Any:
        alone = copy.copy(cache)  # a layer reads and writes its own entry only
        alone.layers = [None] * position + ([copy.copy(before)] if before is not None else [])
        out = own(**inputs, **{name: alone})
        made.append(alone.layers[position])
        return out

    out = checkpoint(run, use_reentrant=False, preserve_rng_state=False, **kwargs)
    cache.layers[position:] = [made.pop(), *cache.layers[position + 1 :]]
    return out


def _position(layer: nn.Module) -> int:
    """Return a layer's position in the cache."""
    return next(int(module.layer_idx) for module in layer.modules() if hasattr(module, "layer_idx"))  # type: ignore[arg-type]
