"""Parameter settings in mergekit's YAML, written so that they do not depend on its convention of gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evosearch.recipe.blocks import Block
from evosearch.recipe.parameters import Setting, evaluate
from evosearch.recipe.shapes import ModelShape, Place, Scalar, TensorSpec


@dataclass(frozen=True)
class View:
    """The tensors of the output that one block computes: layers from `first` on, and those outside of the layers."""

    shape: ModelShape
    first: int
    length: int
    opens: bool  # makes the embeddings
    closes: bool  # makes final norm and head

    def names(self) -> list[str]:
        """Return the names of its tensors."""
        return [tensor.name for tensor in self.shape.tensors if self._has(tensor)]

    def ends(self) -> list[str]:
        """Return the names of its tensors outside of the layers."""
        return [name for name in self.names() if self.shape.by_name[name].layer is None]

    def position(self, name: str) -> float:
        """Return the position in [0, 1] at which a gradient is evaluated for a tensor."""
        layer = self.shape.by_name[name].layer
        if layer is None:
            return 0.0 if self.shape.by_name[name].place is Place.EMBEDDINGS else 1.0
        return (layer - self.first) / (self.length - 1) if self.length > 1 else 1.0

    def per_layer(self, gradient: Any) -> list[Scalar]:
        """Return one number per layer; mergekit's interpolation then returns exactly that number at each layer."""
        return [_at(gradient, "", i / (self.length - 1) if self.length > 1 else 1.0) for i in range(self.length)]

    def _has(self, tensor: TensorSpec) -> bool:
        if tensor.layer is None:
            return self.opens if tensor.place is Place.EMBEDDINGS else self.closes
        return self.first <= tensor.layer < self.first + self.length


def views_of(found: tuple[Block, ...], shape: ModelShape) -> list[View]:
    """Return the view of each block."""
    views: list[View] = []
    first = 0
    for index, block in enumerate(found):
        start, end = block.entries[0].layers or (0, shape.num_layers)
        views.append(View(shape, first, end - start, index == 0, index == len(found) - 1))
        first += end - start
    return views


def conditions(setting: Setting) -> list[dict[str, Any]]:
    """Return a setting as a list of {filter, value} entries."""
    if isinstance(setting, list | tuple) and isinstance(setting[0], Mapping):
        return [dict(entry) for entry in setting]
    return [{"filter": None, "value": setting}]


def explicit(entries: list[dict[str, Any]], views: list[View]) -> Any:
    """Return an equivalent setting that does not depend on the convention of gradients; a lone scalar is unchanged."""
    written: list[dict[str, Any]] = []
    earlier: list[str | None] = []
    for entry in entries:
        written += _explicit_entry(entry["filter"], entry["value"], views, earlier)
        earlier.append(entry["filter"])
    lone = len(written) == 1 and "filter" not in written[0] and not isinstance(written[0]["value"], list | tuple)
    return written[0]["value"] if lone else written


def _explicit_entry(
    pattern: str | None, value: Any, views: list[View], earlier: list[str | None]
) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        return [_entry(pattern, value)]

    def decided(name: str) -> bool:
        return _matches(pattern, name) and not any(_matches(other, name) for other in earlier)

    # Booleans and choices are not interpolated, so the rounding of a position would decide. Each tensor gets an entry.
    if isinstance(value[0], bool | str):
        named = [(view, name) for view in views for name in view.names()]
    else:
        named = [(view, name) for view in views for name in view.ends()]
    written = [_entry(name, _at(value, name, view.position(name))) for view, name in named if decided(name)]
    if isinstance(value[0], bool | str):
        return written
    one_run = len(views) == 1
    return [*written, _entry(pattern, views[0].per_layer(value) if one_run else list(value))]


def _matches(pattern: str | None, name: str) -> bool:
    return pattern is None or pattern == "*" or pattern in name


def _at(value: Any, name: str, position: float) -> Scalar:
    found = evaluate(value, name, position)
    assert found is not None
    return found


def _entry(pattern: str | None, value: Any) -> dict[str, Any]:
    return {"value": value} if pattern is None else {"filter": pattern, "value": value}


def map_values(setting: Setting, change: Callable[[Scalar], Scalar]) -> Setting:
    """Return a setting with every scalar changed."""
    if isinstance(setting, Mapping):
        return {**setting, "value": map_values(setting["value"], change)}
    if isinstance(setting, list | tuple):
        return [map_values(item, change) for item in setting]
    return change(setting)
