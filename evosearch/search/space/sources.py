"""Holes in the sources of slices: every layer is taken from one of several models, in its own place.

    merge_method: passthrough
    base_model: B                                      # config and tokenizer
    slices:
      - sources:
          - model: {choices: [A, B, C], per: layer}    # optional: init
            layer_range: [0, 24]

This is the simple form of the data-flow space: no layer is repeated, left out or moved, and no weights are merged. See
`routes` for the general form. With `per: layer`, every layer of the slice has its own choice; without `per`, the slice
has one. Choices are labels of the models, so that a ledger does not depend on where their folders are.

A filled recipe has plain slices, one for each run of layers of the same model. As in all slices, embeddings belong to
the first one; final norm and head belong to the last.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import Field

from evosearch.documents import Document, join, validate
from evosearch.errors import RecipeError
from evosearch.recipe.schema import MAX_MODELS, MAX_SLICES, Reference, Source
from evosearch.recipe.shapes import Scalar
from evosearch.search.space.labels import labels

MODEL = "model"
METHOD = "passthrough"
IN_A_SOURCE = re.compile(r"slices\[\d+\]\.sources\[\d+\]\.model$")


class SourceHole(Document):
    """The models that a slice or its layers may be taken from."""

    choices: Annotated[tuple[Reference, ...], Field(max_length=MAX_MODELS)]
    per: Literal["layer"] | None = None
    init: Reference | None = None


@dataclass(frozen=True)
class SourceSite:
    """A slice whose model is searched.

    Attributes:
        path: Keys of the slice in the recipe, such as `("slices", 0)`.
        hole: The hole.
        layers: The slice's layers in every model.
        where: Place of the hole, such as `night.yaml: recipe.slices[0].sources[0].model`.
    """

    path: tuple[str | int, ...]
    hole: SourceHole
    layers: range
    where: str

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """Model → its label."""
        return labels(self.hole.choices)

    @property
    def init(self) -> str:
        """Label of the model that the search starts from."""
        return self.labels[self.hole.init or self.hole.choices[0]]

    @property
    def stem(self) -> str:
        """Name of the hole, such as `slices[0].model`."""
        return join("", *self.path, MODEL)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the choices: `layer 3`, or `""` for a single one."""
        return tuple(f"layer {layer}" for layer in self.layers) if self.hole.per else ("",)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the dimensions, in the order of `keys`."""
        return tuple(f"{self.stem}[{key}]" if key else self.stem for key in self.keys)

    def everywhere(self) -> list[dict[str, Any]]:
        """Return the sources of a slice that is merged of all models, which stands for the slice in a frame."""
        return [{MODEL: model, "layer_range": self._range(self.layers)} for model in self.hole.choices]

    def slices(self, written: Mapping[str, Any], genome: Mapping[str, Scalar]) -> Iterator[dict[str, Any]]:
        """Yield the slices of a genome, one for each run of layers of the same model.

        Args:
            written: The slice, with all other holes filled.
            genome: Dimension → value; the hole's are labels.
        """
        models = {label: model for model, label in self.labels.items()}
        chosen = [models[str(genome[name])] for name in self.names]
        by_layer = zip(chosen if self.hole.per else chosen * len(self.layers), self.layers, strict=True)
        (source,) = written["sources"]
        for model, run in groupby(by_layer, key=lambda pair: pair[0]):
            own = [layer for _, layer in run]
            yield {**written, "sources": [{**source, MODEL: model, "layer_range": self._range(own)}]}

    @staticmethod
    def _range(layers: range | list[int]) -> list[int]:
        return [layers[0], layers[-1] + 1]


def find(template: Mapping[str, Any], where: str) -> tuple[SourceSite, ...]:
    """Find the slices whose model is searched.

    Args:
        template: The recipe with holes.
        where: Prefix of the key in an error, such as `night.yaml: recipe`.

    Raises:
        RecipeError: A hole is malformed, or the recipe cannot have one.
    """
    found = tuple(
        _site((*path, index), each, number, source, where)
        for path, slices in _lists(template)
        for index, each in enumerate(slices)
        for number, source in _searched(each)
    )
    if found:
        _check_recipe(template, found[0], where)
    return found


def filled(template: dict[str, Any], sites: tuple[SourceSite, ...], genome: Mapping[str, Scalar]) -> None:
    """Replace every slice whose model is searched by the slices of a genome, in place."""
    at = {site.path: site for site in sites}
    for path, slices in list(_lists(template)):
        made = [
            one
            for index, each in enumerate(slices)
            for one in (at[*path, index].slices(each, genome) if (*path, index) in at else (each,))
        ]
        _holder(template, path)["slices"] = made


def at_hole(where: str, sites: tuple[SourceSite, ...]) -> str:
    """Return the place in the spec of an error about a model of a frame: the choice, not the source that stands for it.

    >>> at_hole("night.yaml: recipe.slices[0].sources[2].model", ())
    'night.yaml: recipe.slices[0].sources[2].model'
    """
    for site in sites:
        head = f"{site.where.rpartition('.sources[')[0]}.sources["
        number, bracket, _ = where.removeprefix(head).partition("]")
        if where.startswith(head) and bracket and number.isdigit():
            return join(site.where, "choices", int(number))
    return where


def _lists(template: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], list[Any]]]:
    """Yield path and content of every list of slices; malformed ones are left to the recipe's schema."""
    if isinstance(template.get("slices"), list | tuple):
        yield ("slices",), list(template["slices"])
    modules = template.get("modules")
    for name, module in modules.items() if isinstance(modules, Mapping) else ():
        if isinstance(module, Mapping) and isinstance(module.get("slices"), list | tuple):
            yield ("modules", name, "slices"), list(module["slices"])


def _holder(template: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    node: Any = template
    for key in path[:-1]:
        node = node[key]
    return node


def _searched(each: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the sources of a slice whose model is not a name, with their number."""
    listed = each.get("sources") if isinstance(each, Mapping) else None
    for number, source in enumerate(listed if isinstance(listed, list | tuple) else ()):
        if isinstance(source, Mapping) and isinstance(source.get(MODEL), Mapping):
            yield number, source


def _site(
    path: tuple[str | int, ...], each: Mapping[str, Any], number: int, source: Mapping[str, Any], where: str
) -> SourceSite:
    place = join(where, *path, "sources", number)
    hole = _hole(source[MODEL], join(place, MODEL))
    if len(each["sources"]) > 1:
        what = f"{len(each['sources'])} sources, and the model of one is searched"
        raise RecipeError(join(where, *path, "sources"), what, "One source", "Add the other models to its choices")
    plain = {key: value for key, value in source.items() if key != "parameters"}
    first, end = validate(Source, {**plain, MODEL: hole.choices[0]}, place, RecipeError).layer_range
    if end - first > MAX_SLICES:
        raise RecipeError(join(place, "layer_range"), f"{end - first} layers", f"At most {MAX_SLICES}")
    return SourceSite(path, hole, range(first, end), join(place, MODEL))


def _hole(raw: Mapping[str, Any], where: str) -> SourceHole:
    if "choices" not in raw:
        raise RecipeError(where, "a hole is not allowed here", "A model, or {choices: [A, B], per: layer}")
    hole = validate(SourceHole, dict(raw), where, RecipeError)
    for index, model in enumerate(hole.choices):
        if model in hole.choices[:index]:
            what = f"'{model}' is given twice"
            raise RecipeError(join(where, "choices", index), what, "Give each model once")
    if len(hole.choices) < 2:
        what = f"{len(hole.choices)} given"
        raise RecipeError(join(where, "choices"), what, "At least two models", "Name a single model without choices")
    if hole.init is not None and hole.init not in hole.choices:
        listed = ", ".join(hole.choices)
        raise RecipeError(join(where, "init"), f"got '{hole.init}'", f"One of the choices: {listed}")
    return hole


def _check_recipe(template: Mapping[str, Any], site: SourceSite, where: str) -> None:
    """Check what filled slices need: `passthrough`, a base for config and tokenizer, and no gradients over a slice.

    Raises:
        RecipeError: One of these is missing.
    """
    method = template.get("merge_method")
    if method != METHOD:
        what = f"got {method!r}, and {site.stem} is searched, which takes layers from one model each"
        raise RecipeError(join(where, "merge_method"), what, METHOD)
    if template.get("base_model") is None:
        what = f"missing; {site.stem} is searched, so that config and tokenizer could be those of any model"
        raise RecipeError(join(where, "base_model"), what, next="Name the model that has the config of the output")
    for place in _gradients(template, where):
        what = f"a gradient counts the layers of a slice, and the search over {site.stem} decides how long slices are"
        raise RecipeError(place, what, "A number, or {filter, value} entries with numbers")


def _gradients(node: Any, where: str, inside: bool = False) -> Iterator[str]:
    """Yield the places of lists of numbers in `parameters`."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not (inside and key == "choices"):
                yield from _gradients(value, join(where, str(key)), inside or key == "parameters")
    elif isinstance(node, list | tuple):
        if inside and any(isinstance(item, int | float) for item in node):
            yield where
        for index, value in enumerate(node):
            yield from _gradients(value, join(where, index), inside)
