"""Passes of a sample through the layers of a live model, one layer at a time, with the states in between kept.

The layers before and after the current one are skipped: the first returns the kept state, all others return what they
are given. Masks and positions are thus those of the model's own forward pass, for every family.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evosearch.evaluation.engine.head import body
from evosearch.moments.gram_matrices import Seen, watched


class LayerWalk:
    """A sample on its way through a model.

    Args:
        model: A causal transformers model in evaluation mode. Its weights may change between passes.
        layers: Its layers, in order.
        documents: Token ids of each document.
        states: Hidden states of each document (tokens, width), float32 on the CPU: the inputs of the current layer.
            Those of the first layer are not read, since the model's embeddings give them.
    """

    def __init__(
        self, model: Any, layers: Sequence[nn.Module], documents: Sequence[Sequence[int]], states: Sequence[Tensor]
    ) -> None:
        self._model, self._layers, self._documents, self._states = model, layers, documents, states

    @torch.no_grad()
    def read(self, position: int, modules: Mapping[str, nn.Module], see: Seen) -> None:
        """Let `see` have the inputs of modules while every document passes one layer. The states stay.

        Args:
            position: The layer; the number of layers for the part behind them: final norm and head.
            modules: Name → module of that part.
            see: Called with the name and the input of each module, document by document.
        """
        with watched(modules, see):
            self._pass(position, lambda index, out: None)

    @torch.no_grad()
    def advance(self, position: int) -> None:
        """Pass every document through one layer, and keep its outputs as the states."""

        def keep(index: int, out: Tensor) -> None:
            self._states[index].copy_(out[0])

        self._pass(position, keep)

    def _pass(self, position: int, done: Callable[[int, Tensor], None]) -> None:
        current = [0]
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                if index != position:
                    stack.enter_context(_instead(layer, self._entry(current) if index == 0 else _skip))
            run = self._model if position == len(self._layers) else body(self._model)
            if position < len(self._layers):
                hook = self._layers[position].register_forward_hook(lambda _, args, out: done(current[0], out))
                stack.callback(hook.remove)
            for current[0], tokens in enumerate(self._documents):
                run(input_ids=torch.tensor([list(tokens)], device=self._model.device), use_cache=False)

    def _entry(self, current: Sequence[int]) -> Callable[..., Tensor]:
        """Return a forward in place of the first layer's, which returns the current document's state."""

        def enter(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
            return self._states[current[0]].unsqueeze(0).to(hidden)

        return enter


def _skip(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


@contextmanager
def _instead(layer: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward  # the class's own is used again
