"""Uniform view of a recipe as blocks, each a run of the output's layers.

`models` is one block over all layers, `slices` is one block per slice, and `modules.default` is either.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from evosearch.documents import join
from evosearch.errors import RecipeError
from evosearch.recipe.parameters import Setting
from evosearch.recipe.schema import Input, Recipe, Slice

DEFAULT = "default"  # the one module of a language model
Scope = Mapping[str, Setting]


@dataclass(frozen=True)
class Entry:
    """One model of a block.

    Attributes:
        model: Reference of the model.
        layers: First layer and the one after the last; None for all layers of the model.
        own: The entry's own parameters.
        where: Key of the entry in the recipe, such as `slices[0].sources[1]`.
    """

    model: str
    layers: tuple[int, int] | None
    own: Scope
    where: str


@dataclass(frozen=True)
class Block:
    """A run of the output's layers.

    Attributes:
        entries: The models, including the base if the recipe lists it.
        base: The base of this block.
        shared: Parameter scopes outside of the entries, narrowest first: the slice's, the module's, the recipe's.
        keys: Key of each of these scopes in the recipe.
        where: Key of the block in the recipe; "" for the recipe itself.
    """

    entries: tuple[Entry, ...]
    base: str | None
    shared: tuple[Scope, ...]
    keys: tuple[str, ...]
    where: str

    @property
    def parents(self) -> tuple[Entry, ...]:
        """Return the entries other than the base."""
        return tuple(entry for entry in self.entries if entry.model != self.base)

    def layers_of_base(self) -> tuple[int, int] | None:
        """Return the base's layers: those of its entry, or else those that all sources share.

        Raises:
            RecipeError: The base is not listed, and the sources take different layers.
        """
        for entry in self.entries:
            if entry.model == self.base:
                return entry.layers
        ranges = {entry.layers for entry in self.entries}
        if len(ranges) > 1:
            what = f"the layers of the base '{self.base}' are ambiguous: the sources take different layers"
            raise RecipeError(join(self.where, "sources"), what, next="List the base with its layer_range")
        return ranges.pop()


def blocks(recipe: Recipe) -> tuple[Block, ...]:
    """Return the recipe's blocks, in the order of the output's layers.

    Raises:
        RecipeError: The recipe has a module other than `default`.
    """
    top = (recipe.parameters,), ("parameters",)
    if not recipe.modules:
        return _blocks(recipe, recipe.models, recipe.slices, *top, "")
    for name in recipe.modules:
        if name != DEFAULT:
            allowed = f"Only decoder-only language models can be merged; their only module is '{DEFAULT}'"
            raise RecipeError(f"modules.{name}", "unknown module", allowed)
    module, where = recipe.modules[DEFAULT], f"modules.{DEFAULT}"
    shared = (module.parameters, *top[0]), (f"{where}.parameters", *top[1])
    return _blocks(recipe, module.models, module.slices, *shared, where)


def _blocks(
    recipe: Recipe,
    models: tuple[Input, ...],
    slices: tuple[Slice, ...],
    shared: tuple[Scope, ...],
    keys: tuple[str, ...],
    where: str,
) -> tuple[Block, ...]:
    if models:
        entries = [
            Entry(entry.model, None, entry.parameters, join(where, "models", i)) for i, entry in enumerate(models)
        ]
        return (Block(tuple(entries), recipe.base_model, shared, keys, where),)
    found = []
    for index, each in enumerate(slices):
        place = join(where, "slices", index)
        entries = [
            Entry(source.model, source.layer_range, source.parameters, join(place, "sources", i))
            for i, source in enumerate(each.sources)
        ]
        base = each.base_model or recipe.base_model
        found.append(Block(tuple(entries), base, (each.parameters, *shared), (join(place, "parameters"), *keys), place))
    return tuple(found)
