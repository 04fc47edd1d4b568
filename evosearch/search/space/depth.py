"""A hole over depth: which numbers it has, and the setting that gives each tensor exactly its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evosearch.recipe.shapes import ModelShape, Place, Scalar, TensorSpec
from evosearch.search.space.holes import Hole

EMBEDDINGS, HEAD = "embeddings", "head"  # the two numbers beside those of the layers


def reached(shape: ModelShape, pattern: str | None, earlier: Sequence[str | None]) -> tuple[TensorSpec, ...]:
    """The tensors an entry of a filter list decides: those it matches and no entry before it does."""
    return tuple(
        tensor
        for tensor in shape.tensors
        if matches(pattern, tensor.name) and not any(matches(other, tensor.name) for other in earlier)
    )


def matches(pattern: str | None, name: str) -> bool:
    """Whether a filter takes a tensor."""
    return pattern is None or pattern == "*" or pattern in name


@dataclass(frozen=True)
class Layout:
    """One hole where it stands: behind `pattern`, deciding `tensors`.

    `keys` names its numbers: `""` for a single one, `layer 3`, `group 1`, `point 0`, and `embeddings` and `head` where
    the hole decides such tensors and its ends are separate. With tied embeddings there is no head number: the final
    norm takes the last layer's. A layer, or a group, without a tensor that the hole decides has no number.
    """

    hole: Hole
    shape: ModelShape
    pattern: str | None
    tensors: tuple[TensorSpec, ...]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        hole = self.hole
        if hole.per is None:
            return ("",)
        if hole.per == "gradient":
            return tuple(f"point {index}" for index in range(hole.points or 0))
        inner = dict.fromkeys(self._inner(layer) for layer in self._layers)
        ends = hole.ends != "shared"
        first = [EMBEDDINGS] if ends and self._decides(Place.EMBEDDINGS) else []
        untied = ends and not self.shape.tied_embeddings
        last = [HEAD] if untied and self._decides(Place.FINAL_NORM, Place.HEAD) else []
        return (*first, *inner, *last)

    def keys_at(self, tensor: TensorSpec) -> tuple[str, ...]:
        """The numbers that one of the tensors is made with."""
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
        """This hole filled, as entries of a filter list. `values` are keyed as `keys`."""
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
        """The number of every layer of the model; where there is no tensor, any will do."""
        nearest = (min(self._layers, key=lambda other: abs(other - layer)) for layer in range(self.shape.num_layers))
        return tuple(self._inner(layer) for layer in nearest)

    @cached_property
    def _named(self) -> tuple[tuple[str, TensorSpec | None], ...]:
        """Tensors with a filter of their own: those outside the layers, and those (None) that these would catch.

        mergekit takes the first filter that is a part of a tensor's name, so an end such as `norm.weight` would also
        take `layers.0.input_norm.weight`. Longer names come first: a name is never a part of a shorter one.
        """
        ends: dict[str, TensorSpec | None] = {tensor.name: tensor for tensor in self._ends()}
        inner = [t.name for t in self.tensors if t.layer is not None and any(end in t.name for end in ends)]
        named = ends | dict.fromkeys(inner)
        ordered = sorted(named, key=len, reverse=True) if inner else list(named)
        return tuple((name, named[name]) for name in ordered)

    def _inner(self, layer: int) -> str:
        """The number of a layer."""
        if self.hole.per == "layer":
            return f"layer {layer}"
        group = layer * (self.hole.groups or 1) // self.shape.num_layers  # runs of equal length, up to one layer
        return f"group {group}"

    @cached_property
    def _layers(self) -> list[int]:
        """The layers with a number: those with tensors that are decided, and the ones at an end that shares theirs."""
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
        """The number of a tensor outside the layers."""
        if self._with_embeddings(tensor):
            return values.get(EMBEDDINGS, layers[0])
        return values.get(HEAD, layers[-1])

    def _with_embeddings(self, tensor: TensorSpec) -> bool:
        """Whether a tensor outside the layers goes with the embeddings: a tied head is their own tensor."""
        tied_head = tensor.place is Place.HEAD and self.shape.tied_embeddings
        return tensor.place is Place.EMBEDDINGS or tied_head

    def _ends(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.layer is None)

    def _decides(self, *places: Place) -> bool:
        return any(tensor.place in places for tensor in self.tensors)


def _position(tensor: TensorSpec, layers: int) -> float:
    """Where on a gradient a tensor of a whole model stands, in [0, 1]."""
    if tensor.layer is None:
        return 0.0 if tensor.place is Place.EMBEDDINGS else 1.0
    return tensor.layer / (layers - 1) if layers > 1 else 1.0


@dataclass(frozen=True)
class Piece:
    """One entry of a setting: as it was written, or a hole and the dimension of each of its numbers."""

    fixed: Mapping[str, Any] | None = None
    layout: Layout | None = None
    names: Mapping[str, str] | None = None  # key of the layout → dimension

    @property
    def pattern(self) -> str | None:
        return self.layout.pattern if self.layout is not None else (self.fixed or {}).get("filter")

    def entries(self, genome: Mapping[str, Scalar]) -> list[dict[str, Any]]:
        if self.layout is None or self.names is None:
            return [dict(self.fixed or {})]
        return self.layout.entries({key: genome[name] for key, name in self.names.items()})

    def deciding(self, tensor: TensorSpec) -> tuple[str, ...]:
        """The dimensions that one of its tensors is made with."""
        if self.layout is None or self.names is None:
            return ()
        return tuple(self.names[key] for key in self.layout.keys_at(tensor))


def flatten(pieces: Iterable[list[dict[str, Any]]]) -> Any:
    """Entries as the shortest setting that says the same: a lone entry for everything is its value."""
    entries = [entry for piece in pieces for entry in piece]
    if len(entries) == 1 and entries[0]["filter"] in (None, "*"):
        return entries[0]["value"]
    return entries
