"""A hole over depth: which numbers it has, and the setting that gives each tensor exactly its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.recipe.shapes import ModelShape, Place, Scalar, TensorSpec
from evosearch.search.holes import Hole

EMBEDDINGS, HEAD = "embeddings", "head"  # the two numbers beside those of the layers


def reached(shape: ModelShape, pattern: str | None, earlier: Sequence[str | None]) -> tuple[TensorSpec, ...]:
    """The tensors an entry of a filter list decides: those it matches and no entry before it does."""
    return tuple(
        tensor
        for tensor in shape.tensors
        if _matches(pattern, tensor.name) and not any(_matches(other, tensor.name) for other in earlier)
    )


def _matches(pattern: str | None, name: str) -> bool:
    return pattern is None or pattern == "*" or pattern in name


@dataclass(frozen=True)
class Layout:
    """One hole where it stands: behind `pattern`, deciding `tensors`.

    `keys` names its numbers: `""` for a single one, `layer 3`, `group 1`, `point 0`, and `embeddings` and `head` where
    the hole decides such tensors and its ends are separate. With tied embeddings there is no head number: the final
    norm takes the last layer's.
    """

    hole: Hole
    shape: ModelShape
    pattern: str | None
    tensors: tuple[TensorSpec, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        hole = self.hole
        if hole.per is None:
            return ("",)
        if hole.per == "gradient":
            return tuple(f"point {index}" for index in range(hole.points or 0))
        inner = [f"layer {i}" for i in range(self.shape.num_layers)]
        if hole.per == "group":
            inner = [f"group {i}" for i in range(hole.groups or 0)]
        ends = hole.ends != "shared"
        first = [EMBEDDINGS] if ends and self._decides(Place.EMBEDDINGS) else []
        untied = ends and not self.shape.tied_embeddings
        last = [HEAD] if untied and self._decides(Place.FINAL_NORM, Place.HEAD) else []
        return (*first, *inner, *last)

    def entries(self, values: Mapping[str, Scalar]) -> list[dict[str, Any]]:
        """This hole filled, as entries of a filter list. `values` are keyed as `keys`."""
        pattern = "*" if self.pattern is None else self.pattern
        if self.hole.per is None:
            return [{"filter": pattern, "value": values[""]}]
        if self.hole.per == "gradient":
            return [{"filter": pattern, "value": [values[key] for key in self.keys]}]
        layers = self._by_layer(values)
        # mergekit takes the first filter that is a part of a tensor's name, so an end such as `norm.weight` would also
        # take `layers.0.input_norm.weight`. Longer names come first: a name is never a part of a shorter one.
        ends = {tensor.name: self._end(tensor, values, layers) for tensor in self._ends()}
        inner = {t.name: layers for t in self.tensors if t.layer is not None and any(end in t.name for end in ends)}
        named: dict[str, Any] = {**ends, **inner}
        ordered = sorted(named, key=len, reverse=True) if inner else list(named)
        return [*({"filter": name, "value": named[name]} for name in ordered), {"filter": pattern, "value": layers}]

    def _by_layer(self, values: Mapping[str, Scalar]) -> list[Scalar]:
        count = self.shape.num_layers
        if self.hole.per == "layer":
            return [values[f"layer {i}"] for i in range(count)]
        groups = self.hole.groups or 1
        return [values[f"group {i * groups // count}"] for i in range(count)]  # runs of equal length, up to one layer

    def _end(self, tensor: TensorSpec, values: Mapping[str, Scalar], layers: Sequence[Scalar]) -> Scalar:
        """The number of a tensor outside the layers. A tied head is the embeddings' own tensor."""
        tied_head = tensor.place is Place.HEAD and self.shape.tied_embeddings
        if tensor.place is Place.EMBEDDINGS or tied_head:
            return values.get(EMBEDDINGS, layers[0])
        return values.get(HEAD, layers[-1])

    def _ends(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.layer is None)

    def _decides(self, *places: Place) -> bool:
        return any(tensor.place in places for tensor in self.tensors)


def flatten(pieces: Iterable[list[dict[str, Any]]]) -> Any:
    """Entries as the shortest setting that says the same: a lone entry for everything is its value."""
    entries = [entry for piece in pieces for entry in piece]
    if len(entries) == 1 and entries[0]["filter"] in (None, "*"):
        return entries[0]["value"]
    return entries
