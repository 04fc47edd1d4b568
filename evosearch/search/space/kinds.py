"""Holes with a number for every tensor, or for every module of a layer, and the filters that write them.

Tensors of the same name in every layer are a kind: `self_attn.q_proj` in layer 0, 1, 2… The filled form has a filter
for each kind, whose value is a list over the layers, and one for each kind outside of the layers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from evosearch.recipe.shapes import ModelShape, Scalar, TensorSpec
from evosearch.search.space.depth import matches
from evosearch.search.space.holes import Hole

T = TypeVar("T")
NORMS = "norms"  # all norms of a layer, which share a number with `per: module`


@dataclass(frozen=True)
class Kind:
    """Tensors of one kind: in every layer that has them, or outside of the layers.

    Attributes:
        label: Its short name, unique among the kinds in layers, or outside of them: `q_proj`, `q_proj.bias`, `norms`.
        in_layers: Whether its tensors are in layers.
    """

    label: str
    in_layers: bool


@dataclass(frozen=True)
class Kinds:
    """The numbers of one hole with `per: tensor` or `per: module`.

    With `tensor`, every tensor has its own number. With `module`, the tensors of a module share one (weight and bias),
    as do all experts of a layer in each projection, and all norms of a layer. Keys are `q_proj 3` for layer 3, and
    `embed_tokens`, `norm` and `lm_head` outside of the layers. A tied head has the number of the embeddings.

    Attributes:
        hole: The hole.
        shape: The tensors of the model.
        pattern: Filter of the hole.
        tensors: The tensors that the hole affects.
        earlier: Filters of earlier entries of the setting.
    """

    hole: Hole
    shape: ModelShape
    pattern: str | None
    tensors: tuple[TensorSpec, ...]
    earlier: tuple[str | None, ...] = ()

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of the numbers, in the order of the model."""
        return tuple(dict.fromkeys(self._key(tensor) for tensor in self.tensors))

    def keys_at(self, tensor: TensorSpec) -> tuple[str, ...]:
        """Return the key of a tensor's number."""
        return (self._key(tensor),)

    def entries(self, values: Mapping[str, Scalar]) -> list[dict[str, Any]]:
        """Return entries of a filter list with the hole filled.

        Args:
            values: Key of a number → its value.
        """
        found = [(pattern, [values[key] for key in keys]) for pattern, keys in self._filters]
        return [{"filter": pattern, "value": own if len(own) > 1 else own[0]} for pattern, own in found]

    @cached_property
    def _filters(self) -> list[tuple[str, tuple[str, ...]]]:
        """Filters, with the keys of their numbers: one, or one for every layer of the model.

        The first filter that is part of a tensor's name wins. Longer ones come first, since a filter may be part of a
        longer one (`mlp.gate` of `mlp.gate_proj`), and never of a shorter one. Short filters are taken if they select
        the affected tensors exactly; else whole names within a layer; else, as for a hole with the filter `layers.3.`,
        the complete name of every tensor.
        """
        for form in (self._short, _within):
            filters = _longest_first((form(tensor), self._kinds[tensor.name]) for tensor in self.tensors)
            if self._exact(filters):
                return [(pattern, self._keys_of(kind)) for pattern, kind in filters.items()]
        return list(_longest_first((tensor.name, (self._key(tensor),)) for tensor in self.tensors).items())

    def _exact(self, filters: Mapping[str, Kind]) -> bool:
        """Return whether the filters select every affected tensor by its kind, and no other tensor."""
        affected = {tensor.name for tensor in self.tensors}
        for tensor in self.shape.tensors:
            if any(matches(pattern, tensor.name) for pattern in self.earlier):
                continue
            meant = self._kinds[tensor.name] if tensor.name in affected else None
            if next((kind for pattern, kind in filters.items() if pattern in tensor.name), None) != meant:
                return False
        return True

    def _keys_of(self, kind: Kind) -> tuple[str, ...]:
        """Return the key of every layer's number; of the nearest layer's where a layer has no tensor of this kind."""
        if not kind.in_layers:
            return (kind.label,)
        own = [tensor.layer for tensor in self.tensors if tensor.layer is not None and self._kinds[tensor.name] == kind]
        nearest = (min(own, key=lambda other: abs(other - layer)) for layer in range(self.shape.num_layers))
        return tuple(f"{kind.label} {layer}" for layer in nearest)

    def _key(self, tensor: TensorSpec) -> str:
        label = self._kinds[tensor.name].label
        return label if tensor.layer is None else f"{label} {tensor.layer}"

    @cached_property
    def _kinds(self) -> Mapping[str, Kind]:
        """The kind of every tensor of the model."""
        named = {tensor.name: self._named(tensor) for tensor in self.shape.tensors}
        modules = {
            inside: {named[t.name][0] for t in self.shape.tensors if (t.layer is not None) == inside}
            for inside in (True, False)
        }
        shortest = {inside: {name: _shortest(name, found) for name in found} for inside, found in modules.items()}
        found = {}
        for tensor in self.shape.tensors:
            inside, (module, leaf) = tensor.layer is not None, named[tensor.name]
            found[tensor.name] = Kind(shortest[inside][module] + leaf, inside)
        return found

    def _named(self, tensor: TensorSpec) -> tuple[str, str]:
        """Return the module of a tensor's kind, and what distinguishes the tensor within it, such as `.bias`."""
        module, leaf = _module(tensor)
        if self.hole.per == "tensor":
            return module, "" if leaf in ("", "weight") else f".{leaf}"
        if tensor.layer is not None and is_norm(module):
            return NORMS, ""
        return ".".join(part for part in module.split(".") if not part.isdigit()) or module, ""

    def _short(self, tensor: TensorSpec) -> str:
        """Return a short filter: the module's name, or what follows the number of an expert."""
        module, _ = _module(tensor)
        if self.hole.per == "tensor":
            return module if self._sizes[tensor.layer, module] == 1 else _path(tensor)
        parts = module.split(".")
        numbered = [index for index, part in enumerate(parts) if part.isdigit()]
        return ".".join(parts[numbered[-1] + 1 :]) or module if numbered else module

    @cached_property
    def _sizes(self) -> Counter[tuple[int | None, str]]:
        """Number of tensors of every module, by (layer, module)."""
        return Counter((tensor.layer, _module(tensor)[0]) for tensor in self.shape.tensors)


def is_norm(module: str) -> bool:
    """Return whether a module of a layer is a norm, by its name: `input_layernorm`, `self_attn.q_norm`, `ln_1`."""
    name = module.rpartition(".")[2]
    return "norm" in name or name.startswith("ln_")


def _path(tensor: TensorSpec) -> str:
    """Return a tensor's name within its layer; outside of the layers, its name."""
    return tensor.name if tensor.layer is None else tensor.name.partition(f".{tensor.layer}.")[2]


def _module(tensor: TensorSpec) -> tuple[str, str]:
    """Return the name of a tensor's module within its layer, and the tensor's name in it, such as `weight`."""
    module, _, leaf = _path(tensor).rpartition(".")
    return (module, leaf) if module else (leaf, "")


def _within(tensor: TensorSpec) -> str:
    """Return a filter with a tensor's whole name within its layer."""
    return tensor.name if tensor.layer is None else f".{_path(tensor)}"


def _shortest(module: str, modules: Iterable[str]) -> str:
    """Return the shortest end of a name that no other name has, not beginning with a number."""
    parts, others = module.split("."), [other.split(".") for other in modules if other != module]
    for size in range(1, len(parts)):
        if not parts[-size].isdigit() and all(other[-size:] != parts[-size:] for other in others):
            return ".".join(parts[-size:])
    return module


def _longest_first(filters: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return filter → target, longest filters first; of equal filters, the first target counts."""
    found: dict[str, T] = {}
    for pattern, target in filters:
        found.setdefault(pattern, target)
    return {pattern: found[pattern] for pattern in sorted(found, key=len, reverse=True)}
