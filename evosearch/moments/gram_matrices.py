"""Gram matrices G = XᵀX/n of the inputs X (n, in) of every linear layer (RegMean, arXiv:2212.09849).

Layers that read the same tensor, such as queries, keys and values, share one matrix.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evosearch.checkpoints.families.registry import Placement

Seen = Callable[[str, Tensor], None]  # (name of the weight, the layer's input (..., in))


def linear_layers(model: nn.Module, places: Mapping[str, Placement]) -> dict[str, nn.Module]:
    """Return name of the weight → linear layer, for weights that are a complete parameter of one.

    Args:
        model: A live transformers model.
        places: Name → its place in the model. Tied heads have no name of their own.
    """
    found: dict[str, nn.Module] = {}
    for name, place in places.items():
        path, _, kind = place.parameter.rpartition(".")
        module = model.get_submodule(path)
        if kind == "weight" and not place.index and isinstance(module, nn.Linear | Conv1D):
            found[name] = module
    return found


@torch.no_grad()
def sharing(model: Any, layers: Mapping[str, nn.Module], tokens: Sequence[int]) -> dict[str, str]:
    """Return name → the first name whose layer reads the same tensor; itself if it is the first.

    Args:
        model: The model.
        layers: Name → linear layer.
        tokens: Token ids of a document.
    """
    found = {name: name for name in layers}  # layers that no token reaches, of experts, share nothing
    latest: list[tuple[str, Tensor]] = []

    def see(name: str, x: Tensor) -> None:
        if latest and latest[0][1] is x:
            found[name] = latest[0][0]
        else:
            latest[:] = [(name, x)]

    with watched(layers, see):
        _run(model, tokens)
    return found


def add_gram_matrices(
    model: Any,
    documents: Sequence[Sequence[int]],
    sums: Mapping[str, Tensor],
    layers: Mapping[str, nn.Module],
    done: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Add G to `sums`, document by document: beside the model, one matrix at a time is in memory.

    Args:
        model: A causal transformers model in evaluation mode.
        documents: Token ids of each document.
        sums: Name → matrix (in, in) float32 on the CPU.
        layers: Name → linear layer.
        done: Called with the fraction of the documents.
    """
    add = adding(sums, 1.0 / sum(map(len, documents)))
    _read(model, documents, {name: layers[name] for name in sums}, add, done)


def adding(sums: Mapping[str, Tensor], scale: float) -> Seen:
    """Return a function that adds scale · XᵀX of a layer's input X to its matrix in `sums`."""

    def add(name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        if rows.device.type == "cpu":
            sums[name].addmm_(rows.t(), rows, alpha=scale)
        else:
            sums[name].add_((rows.t() @ rows).cpu(), alpha=scale)

    return add


def keep_inputs(
    model: Any,
    documents: Sequence[Sequence[int]],
    kept: Mapping[str, Tensor],
    layers: Mapping[str, nn.Module],
    done: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Write the inputs of layers to `kept`, row by row; the rows of a layer that reads fewer tokens stay zero.

    Args:
        model: A causal transformers model in evaluation mode.
        documents: Token ids of each document.
        kept: Name → matrix (rows, in) float32 on the CPU.
        layers: Name → linear layer.
        done: Called with the fraction of the documents.
    """
    filled = dict.fromkeys(kept, 0)

    def keep(name: str, x: Tensor) -> None:
        start, room = filled[name], len(kept[name]) - filled[name]
        rows = x.reshape(-1, x.shape[-1])[:room].float()
        kept[name][start : start + len(rows)] = rows.cpu()
        filled[name] += len(rows)

    def full() -> bool:
        return all(count == len(kept[name]) for name, count in filled.items())

    _read(model, documents, {name: layers[name] for name in kept}, keep, done, full)


def width(layer: nn.Module) -> int:
    """Return the size of a linear layer's inputs."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0] if isinstance(layer, Conv1D) else weight.shape[1])


@torch.no_grad()
def _read(
    model: Any,
    documents: Sequence[Sequence[int]],
    layers: Mapping[str, nn.Module],
    see: Seen,
    done: Callable[[float], None],
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Let `see` have the inputs of layers, document by document until it has enough."""
    with watched(layers, see):
        for index, tokens in enumerate(documents):
            _run(model, tokens)
            done((index + 1) / len(documents))
            if enough():
                return


def _run(model: Any, tokens: Sequence[int]) -> None:
    model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False)


@contextmanager
def watched(layers: Mapping[str, nn.Module], see: Seen) -> Iterator[None]:
    """Call `see` with every input of the layers within the context."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
            stack.callback(hook.remove)
        yield
