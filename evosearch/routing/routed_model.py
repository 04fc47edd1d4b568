"""Live model that follows routes: its layers are copies of stock layers, in any order and number.

A slot is a copy of a stock layer: new module objects that share the stock's parameters. A layer that runs twice thus
has two sets of keys and values, under the numbers of its slots. Parameters that write to the residual stream depend on
the hop's scale, and every slot has its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class RoutedModel:
    """A transformers model and the stock of its layers.

    Args:
        model: A model with every layer of the stock, in the stock's order.
        layers: Path of its list of layers, such as `model.layers`.
        owned: For each stock layer, the names of the parameters of which every slot has its own copy. Their memory in
            the stock is released.

    Attributes:
        model: The model, with the layers of the last route.
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
        """Return the number of parameters that a slot owns, for each layer of the stock."""
        return tuple(sum(size.numel() for size in sizes.values()) for sizes in self._sizes)

    def follow(
        self, picked: Sequence[int], settings: Mapping[str, Any], attributes: Mapping[str, Any] | None = None
    ) -> list[dict[str, Tensor]]:
        """Make layer k of the model a copy of stock layer `picked[k]`.

        Args:
            settings: Config settings of these layers: their number, and per-layer keys.
            attributes: Attributes of the layers' parent module that depend on the route (`Family.layer_attributes`).

        Returns:
            For each slot, name within the layer → the slot's own parameter, still to be written.
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
        for key, value in (attributes or {}).items():
            setattr(self._parent, key, value)
        return [{name: parameter.data for name, parameter in own.items()} for own in self._slots]

    def _own(self, index: int, before: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return a slot's own parameters; those of its previous layer are reused if their sizes match."""
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
    """Copy a module and its children with shared parameters and buffers, as layer number `slot`."""
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers"):
        copied.__dict__[name] = dict(module.__dict__[name])
    children = {name: None if child is None else _copy(child, slot) for name, child in module._modules.items()}
    copied.__dict__["_modules"] = children
    if hasattr(copied, "layer_idx"):
        copied.__dict__["layer_idx"] = slot
    return copied
