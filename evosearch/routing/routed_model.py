"""A live model that follows hops: its layers are taken, in any order and any number of times, from a stock of layers.

A slot holds a copy of a stock layer, made of new module objects around the stock's own parameters: a layer that runs
twice keeps its keys and values twice, under its slots' numbers. What writes to the residual stream, and so depends on
the hop's scale, every slot has for itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SLIDING = "sliding_attention"


class RoutedModel:
    """A transformers model and the stock that its layers are taken from.

    Args:
        model: built with every layer of the stock, in the stock's order.
        layers: where its list of layers stands, as `model.layers`.
        owned: for each stock layer, the names within it of the parameters that every slot has for itself. Their
            memory in the stock is given back.

    Attributes:
        model: the model, with the layers of the last route that was followed.
    """

    def __init__(self, model: nn.Module, layers: str, owned: Sequence[frozenset[str]]) -> None:
        self.model = model
        parent, _, self._name = layers.rpartition(".")
        self._parent = model.get_submodule(parent)
        self._stock: list[nn.Module] = list(getattr(self._parent, self._name))
        self._sizes = [{name: stock.get_parameter(name).shape for name in names} for stock, names in self._pairs(owned)]
        for stock, names in self._pairs(owned):
            for name in names:
                stock.get_parameter(name).data = torch.empty(0, dtype=stock.get_parameter(name).dtype)
        self._slots: list[dict[str, nn.Parameter]] = []

    @property
    def owned_numbers(self) -> tuple[int, ...]:
        """How many numbers a slot has for itself, for each layer of the stock."""
        return tuple(sum(size.numel() for size in sizes.values()) for sizes in self._sizes)

    def follow(self, picked: Sequence[int], settings: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Make layer k of the model a copy of stock layer `picked[k]`.

        Args:
            settings: what the model's config says of these layers, key → value, their number first of all.

        Returns:
            For each slot, name within the layer → the slot's own parameter, yet to be written.
        """
        del self._slots[len(picked) :]
        self._slots += ({} for _ in range(len(picked) - len(self._slots)))
        layers = []
        for k, index in enumerate(picked):
            layer = _copy(self._stock[index], k)
            self._slots[k] = self._own(index, self._slots[k])
            for name, parameter in self._slots[k].items():
                module, _, key = name.rpartition(".")
                layer.get_submodule(module)._parameters[key] = parameter
            layers.append(layer)
        setattr(self._parent, self._name, nn.ModuleList(layers))
        for key, value in settings.items():
            setattr(self.model.config, key, value)
        if hasattr(self._parent, "has_sliding_layers"):  # Qwen asks its config once, when it is built
            setattr(self._parent, "has_sliding_layers", SLIDING in settings.get("layer_types", ()))  # noqa: B010
        return [{name: parameter.data for name, parameter in own.items()} for own in self._slots]

    def _own(self, index: int, before: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """A slot's own parameters: those it had for the layer before, where their sizes are this one's."""
        some = next(self._stock[index].parameters())  # on the layer's device, which may be one of several
        found: dict[str, nn.Parameter] = {}
        for name, size in self._sizes[index].items():
            if name in before and before[name].shape == size and before[name].device == some.device:
                found[name] = before[name]
            else:
                empty = torch.empty(size, dtype=some.dtype, device=some.device)
                found[name] = nn.Parameter(empty, requires_grad=False)
        return found

    def _pairs(self, owned: Sequence[frozenset[str]]) -> list[tuple[nn.Module, frozenset[str]]]:
        return list(zip(self._stock, owned, strict=True))


def _copy(module: nn.Module, slot: int) -> nn.Module:
    """A module of the same parameters and buffers, its parts copied alike, which calls itself layer `slot`."""
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    for held in ("_parameters", "_buffers"):
        copied.__dict__[held] = dict(module.__dict__[held])
    parts = {name: None if part is None else _copy(part, slot) for name, part in module._modules.items()}
    copied.__dict__["_modules"] = parts
    if hasattr(copied, "layer_idx"):
        copied.__dict__["layer_idx"] = slot
    return copied
