"""The models of a recipe, made ready: references resolved, checkpoints opened, fit for each other, hashed."""

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.references import default_cache, split
from evosearch.documents import join
from evosearch.errors import InputError, RecipeError, in_one
from evosearch.execution.worker import register_schemes
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.fit import check_fit
from evosearch.materialize.forward import differences
from evosearch.materialize.inputs import Opener
from evosearch.materialize.layout import Output, output
from evosearch.materialize.plan import donor_of, plan
from evosearch.merging.registry import specs
from evosearch.recipe.identity import recipe_id
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape, TensorSpec
from evosearch.search.progress import Watcher


@dataclass(frozen=True)
class Models:
    """Opened checkpoints by reference; the first gives config and tokenizer.

    Attributes:
        recipe: the one they were opened for, or its frame: which models are named, how their layers are stacked.
        also: further models, which only baselines name.
    """

    checkpoints: dict[str, Checkpoint]
    recipe: Recipe
    opener: Opener
    also: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(self.checkpoints)

    @property
    def donor(self) -> str:
        return self.references[0]

    @property
    def shape(self) -> ModelShape:
        return self.output.shape

    @cached_property
    def output(self) -> Output:
        """What merges of these models look like."""
        return output(self.recipe, self.checkpoints)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Reference → content_sha256; reads every byte once."""
        return self.opener.contents(self.recipe, self.checkpoints)

    @cached_property
    def files(self) -> dict[str, dict[str, str]]:
        """Reference → file → sha256, of config and tokenizer of every model as it came."""
        return self.opener.files(self.recipe, self.also)

    @property
    def depths(self) -> dict[str, int]:
        """Reference → number of layers."""
        return {reference: checkpoint.shape.num_layers for reference, checkpoint in self.checkpoints.items()}

    def alike(self, references: Iterable[str]) -> bool:
        """Whether these models have the same layers."""
        shapes = [self.checkpoints[reference].shape for reference in references]
        return all(shape == shapes[0] for shape in shapes)

    def needs_another(self, recipe: Recipe) -> bool:
        """Whether a recipe of these models is scored in a model of its own: it has other layers, or another config."""
        if (recipe.routing is None) != (self.recipe.routing is None):
            return True
        return not output(recipe, self.checkpoints).answers_as(self.output)

    def fits(self, recipe: Recipe) -> bool:
        """Whether another recipe of these models can be scored beside this one: it reads the same tokens."""
        ours = self.recipe
        return (recipe.vocabulary, recipe.chat_template) == (ours.vocabulary, ours.chat_template)

    def plan(self, recipe: Recipe, where: str) -> None:
        """Lay a recipe's merge out, for what only its tensors can tell; reads no disk.

        Raises:
            RecipeError: a parameter has no value at some tensor, or layers are asked for that are not there.
        """
        shapes = {reference: checkpoint.shape for reference, checkpoint in self.checkpoints.items()}
        try:
            plan(recipe, shapes, output(recipe, self.checkpoints).shape, specs())
        except RecipeError as error:
            place = f"{where}{error.where.removeprefix('recipe')}" if error.where.startswith("recipe") else error.where
            raise RecipeError(place, error.what, error.allowed, error.next) from None

    def check_beside(self, recipe: Recipe, where: str) -> None:
        """Whether a baseline, of models that the recipe need not name, can be merged, and answers the same prompts.

        Raises:
            CheckpointError: two models do not fit.
        """
        check_fit(recipe, self.checkpoints, output(recipe, self.checkpoints), where)
        pair = [self.checkpoints[self.donor], self.checkpoints[recipe.references()[0]]]
        check_compatible(pair, where, same_depth=False, by_layer=False)

    def live_numbers(self, recipe: Recipe) -> int:
        """How many numbers the resident model of a recipe holds.

        Layers of all models are live for routes, what they share once; what writes to the residual stream every hop has
        for itself.
        """
        laid = output(recipe, self.checkpoints)
        own = [tensor for tensor in laid.shape.tensors if recipe.routing is None or _of_a_hop(tensor)]
        numbers = sum(math.prod(laid.sizes[tensor.name]) for tensor in own)
        if recipe.routing is None:
            return numbers
        stock = {
            self._origin(reference, tensor.name): math.prod(self.checkpoints[reference].tensors[tensor.name].shape)
            for reference in self.recipe.references()
            for tensor in self.checkpoints[reference].shape.tensors
            if not _of_a_hop(tensor)
        }
        return numbers + sum(stock.values())

    def _origin(self, reference: str, tensor: str) -> tuple[int, str]:
        """The checkpoint that a tensor is taken from: an adapter's base has what the adapter does not change."""
        checkpoint = self.checkpoints[reference]
        while (under := checkpoint.shares(tensor)) is not None:
            checkpoint = under
        return id(checkpoint), tensor

    def identify(self, recipe: Recipe) -> str:
        return recipe_id(recipe, self.inputs)


def open_models(
    recipe: Recipe,
    where: str,
    watcher: Watcher,
    allow_pickle: bool = False,
    also: Sequence[str] = (),
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Models:
    """Resolve, fetch or train, open, and compare the models that a recipe names.

    Args:
        also: further models, which only baselines name. How they fit is asked with `Models.check_beside`.
        recipes: reference → recipe, of models that are recipes and need not be read from their files.

    Raises:
        CheckpointError: one is missing, damaged, or does not fit the others.
        RecipeError: a nested recipe is wrong, or layers are asked for that are not there.
        Problems: several of them.
    """
    register_schemes()
    opener = Opener(default_cache(), watcher.preparing, allow_pickle, recipes or {})
    further = tuple(dict.fromkeys(reference for reference in also if reference not in recipe.references()))
    _open_each(opener, recipe, further, where)
    models = Models(opener.inputs(recipe, further), recipe, opener, further)
    for checkpoint in models.checkpoints.values():
        for text in checkpoint.notes:
            watcher.note(text)
    check_fit(recipe, models.checkpoints, models.output, where)
    for text in _other_settings(models):
        watcher.note(text)
    return models


def _open_each(opener: Opener, recipe: Recipe, further: Sequence[str], where: str) -> None:
    """Open every model, so that all that cannot be had are named, and all that do not fit those that can.

    Raises:
        InputError: one cannot be opened; `Problems` where there is more to say.
    """
    opened: list[Checkpoint] = []
    found: list[InputError] = []
    for reference in dict.fromkeys((donor_of(recipe), *recipe.references(), *further)):
        try:
            checkpoint = opener.open(reference)
            opened += [checkpoint] if reference in recipe.references() else []
        except InputError as error:
            found += [_at_its_key(problem, recipe, reference, where, opener.recipes) for problem in error.problems]
    if not found:
        return
    if recipe.routing is None and recipe.vocabulary is None and not recipe.named_slices():
        try:
            check_compatible(opened, where)
        except InputError as error:
            found.append(error)
    raise in_one(where.partition(": ")[0], found)


def _at_its_key(error: InputError, recipe: Recipe, reference: str, where: str, recipes: Container[str]) -> InputError:
    """An error about a model as such, with the key that names it; one about a file of it names that already."""
    key = next(_keys(recipe.to_dict(), reference), None)
    # Split last: of a reference that cannot be, `split` itself has raised the error
    if key is None or (error.where != reference and error.where not in split(reference, recipes)):
        return error
    return type(error)(join(where, *key), f"{error.where}: {error.what}", error.allowed, error.next)


def _keys(node: Any, reference: str) -> Iterator[tuple[str | int, ...]]:
    """Where a recipe, as plain data, names a model."""
    entries = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        if key in ("model", "base_model") and value == reference:
            yield (key,)
        yield from ((key, *rest) for rest in _keys(value, reference))


def _of_a_hop(tensor: TensorSpec) -> bool:
    """Whether a route has a tensor for itself: of a layer what its scale divides, and all that is not of a layer."""
    return tensor.layer is None or tensor.writes_residual


def _other_settings(models: Models) -> list[str]:
    """Which models have other configs than the donor: one of them alone is scored under its own, a merge under one."""
    donor, found = models.checkpoints[models.donor].config, []
    for reference, checkpoint in models.checkpoints.items():
        differing = differences(checkpoint.config, donor, str(checkpoint.folder / CONFIG))
        telling = {key: pair for key, pair in differing.items() if key not in checkpoint.family.of_layers}
        if telling:
            what = ", ".join(f"{key} {own!r} instead of {other!r}" for key, (own, other) in telling.items())
            rule = "a merge is scored and written under the config of its base_model, or else of its first model"
            rule = rule if models.recipe.routing is None else "a route is scored and written under its first model's"
            found.append(f"{reference}: its config has {what} as {models.donor} has it; {rule}")
    return found
