"""Holes that vary over depth: their numbers by layer, group or gradient point, and the resulting settings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from evosearch.recipe.shapes import ModelShape, Place, Scalar, TensorSpec
from evosearch.search.space.holes import Hole

EMBEDDINGS, HEAD = "embeddings", "head"  # keys of the numbers outside the layers


def reached(shape: ModelShape, pattern: str | None, earlier: Sequence[str | None]) -> tuple[TensorSpec, ...]:
    """Return the tensors that an entry of a filter list affects: those it matches and earlier entries do not."""
    return tuple(
        tensor
        for tensor in shape.tensors
        if matches(pattern, tensor.name) and not any(matches(other, tensor.name) for other in earlier)
    )


def matches(pattern: str | None, name: str) -> bool:
    """Return whether a filter matches a tensor."""
    return pattern is None or pattern == "*" or pattern in name


@dataclass(frozen=True)
class Depth:
    """The numbers of one hole, which affects the `tensors` selected by the filter `pattern`.

    Numbers have keys: `""` for a single one, `layer 3`, `group 1`, `point 0`, and `embeddings` and `head` if the hole
    affects such tensors and its ends are separate. With tied embeddings there is no `head`: the final norm has the last
    layer's number. A layer or group without an affected tensor has no number.
    """

    hole: Hole
    shape: ModelShape
    pattern: str | None
    tensors: tuple[TensorSpec, ...]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of the numbers."""
        hole = self.hole
        if hole.per is None:
            return ("",)
        if hole.per == "gradient":
            return tuple(f"point {index}" for index in range(hole.points or 0))
        inner = dict.fromkeys(self._inner(layer) for layer in self._layers)
        ends = hole.ends != "shared"
        first = [EMBEDDINGS] if ends and self._affects(Place.EMBEDDINGS) else []
        untied = ends and not self.shape.tied_embeddings
        last = [HEAD] if untied and self._affects(Place.FINAL_NORM, Place.HEAD) else []
        return (*first, *inner, *last)

    def keys_at(self, tensor: TensorSpec) -> tuple[str, ...]:
        """Return the keys of the numbers that affect a tensor."""
        count, keys = self.shape.num_layers, self.keys
        if self.hole.per is None:
            return keys
        if self.hole.per == "gradient":
            at = _position(tensor, count) * (len(keys) - 1)
            return tuple(key for point, key in enumerate(keys) if abs(point - at) < 1.0)
        end = EMBEDDINGS if self._with_embeddings(tensor) else HEAD
        if tensor.layer is None and end in keys:
            return (end,)
        edge = 0 if end == EMBEDDINGS else count - 1
        return (self._inner(tensor.layer if tensor.layer is not None else edge),)

    def entries(self, values: Mapping[str, Scalar]) -> list[dict[str, Any]]:
        """Return entries of a filter list with the hole filled.

        Args:
            values: Key of a number → its value.
        """
        pattern = "*" if self.pattern is None else self.pattern
        if self.hole.per is None:
            return [{"filter": pattern, "value": values[""]}]
        if self.hole.per == "gradient":
            return [{"filter": pattern, "value": [values[key] for key in self.keys]}]
        layers = [values[key] for key in self._by_layer]
        named = [
            {"filter": name, "value": layers if end is None else self._end(end, values, layers)}
            for name, end in self._named
        ]
        return [*named, {"filter": pattern, "value": layers}]

    @cached_property
    def _by_layer(self) -> tuple[str, ...]:
        """Key of the number of every layer of the model; for layers without a number, the nearest one."""
        nearest = (min(self._layers, key=lambda other: abs(other - layer)) for layer in range(self.shape.num_layers))
        return tuple(self._inner(layer) for layer in nearest)

    @cached_property
    def _named(self) -> tuple[tuple[str, TensorSpec | None], ...]:
        """Tensors with their own filter: those outside the layers, and those (None) that these filters would match.

        mergekit uses the first filter that is part of a tensor's name, so that `norm.weight` would also match
        `layers.0.input_norm.weight`. Longer names come first, since a name is never part of a shorter one.
        """
        ends: dict[str, TensorSpec | None] = {tensor.name: tensor for tensor in self._ends()}
        inner = [t.name for t in self.tensors if t.layer is not None and any(end in t.name for end in ends)]
        named = ends | dict.fromkeys(inner)
        ordered = sorted(named, key=len, reverse=True) if inner else list(named)
        return tuple((name, named[name]) for name in ordered)

    def _inner(self, layer: int) -> str:
        """Return the key of a layer's number."""
        if self.hole.per == "layer":
            return f"layer {layer}"
        group = (
            layer * (self.hole.groups or 1) // self.shape.num_layers
        )  # runs of layers whose lengths differ by at most one
        return f"group {group}"

    @cached_property
    def _layers(self) -> list[int]:
        """Layers with a number: those with affected tensors, and outer ones whose number an end shares."""
        found = {tensor.layer for tensor in self.tensors if tensor.layer is not None}
        ends = self.hole.ends != "shared"
        last = self.shape.num_layers - 1
        for tensor in self._ends():
            if self._with_embeddings(tensor) and not ends:
                found.add(0)
            elif not self._with_embeddings(tensor) and (not ends or self.shape.tied_embeddings):
                found.add(last)
        return sorted(found)

    def _end(self, tensor: TensorSpec, values: Mapping[str, Scalar], layers: Sequence[Scalar]) -> Scalar:
        """Return the number of a tensor outside the layers."""
        if self._with_embeddings(tensor):
            return values.get(EMBEDDINGS, layers[0])
        return values.get(HEAD, layers[-1])

    def _with_embeddings(self, tensor: TensorSpec) -> bool:
        """Return whether a tensor outside the layers belongs to the embeddings, as a tied head does."""
        tied_head = tensor.place is Place.HEAD and self.shape.tied_embeddings
        return tensor.place is Place.EMBEDDINGS or tied_head

    def _ends(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.layer is None)

    def _affects(self, *places: Place) -> bool:
        return any(tensor.place in places for tensor in self.tensors)


def _position(tensor: TensorSpec, layers: int) -> float:
    """Return the position of a tensor on a gradient, in [0, 1]."""
    if tensor.layer is None:
        return 0.0 if tensor.place is Place.EMBEDDINGS else 1.0
    return tensor.layer / (layers - 1) if layers > 1 else 1.0


class Numbers(Protocol):
    """The numbers of one hole, as `Piece` uses them: a `Depth`, or `Kinds`."""

    @property
    def pattern(self) -> str | None:
        """Filter of the hole."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the numbers."""
        ...

    def keys_at(self, tensor: TensorSpec) -> tuple[str, ...]:
        """Return the keys of the numbers that affect a tensor."""
        ...

    def entries(self, values: Mapping[str, Scalar]) -> list[dict[str, Any]]:
        """Return entries of a filter list with the hole filled."""
        ...


@dataclass(frozen=True)
class Piece:
    """One entry of a setting: a fixed one, or a hole with the dimension of each of its numbers."""

    fixed: Mapping[str, Any] | None = None
    numbers: Numbers | None = None
    names: Mapping[str, str] | None = None  # key of a number → dimension

    @property
    def pattern(self) -> str | None:
        """Filter of the entry."""
        return self.numbers.pattern if self.numbers is not None else (self.fixed or {}).get("filter")

    def entries(self, genome: Mapping[str, Scalar]) -> list[dict[str, Any]]:
        """Return the entries of a filter list, filled with a genome."""
        if self.numbers is None or self.names is None:
            return [dict(self.fixed or {})]
        return self.numbers.entries({key: genome[name] for key, name in self.names.items()})

    def dimensions_at(self, tensor: TensorSpec) -> tuple[str, ...]:
        """Return the dimensions that affect a tensor."""
        if self.numbers is None or self.names is None:
            return ()
        return tuple(self.names[key] for key in self.numbers.keys_at(tensor))


def flatten(pieces: Iterable[list[dict[str, Any]]]) -> Any:
    """Return entries as the shortest equivalent setting: a single entry that matches everything is its value."""
    entries = [entry for piece in pieces for entry in piece]
    if len(entries) == 1 and entries[0]["filter"] in (None, "*"):
        return entries[0]["value"]
    return entries
