"""Models of a recipe, ready for merging: resolved, opened, checked against each other, hashed."""

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.references import default_cache, split
from evosearch.checkpoints.tokenizers import tokenizer_files
from evosearch.documents import join
from evosearch.errors import InputError, RecipeError, in_one
from evosearch.execution.loaders import register_schemes
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.fit import check_fit
from evosearch.materialize.forward import differences, generation_config, settings
from evosearch.materialize.inputs import Opener
from evosearch.materialize.layout import Layouts, Output
from evosearch.materialize.plan import TensorOp, donor_of, plan
from evosearch.merging.registry import specs
from evosearch.moments.sample_tokens import Tokens
from evosearch.moments.sampled_moments import SampledMoments
from evosearch.recipe.identity import recipe_id
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape, TensorSpec
from evosearch.search.progress import Watcher


@dataclass(frozen=True)
class Models:
    """Opened checkpoints by reference; the first is the donor of config and tokenizer.

    Attributes:
        checkpoints: Reference → checkpoint.
        recipe: The recipe they were opened for, or its frame.
        opener: The opener of the checkpoints, which has the nested recipes.
        also: Additional models, which only baselines use.
    """

    checkpoints: dict[str, Checkpoint]
    recipe: Recipe
    opener: Opener
    also: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """References of the opened models."""
        return tuple(self.checkpoints)

    @property
    def donor(self) -> str:
        """The model that config and tokenizer are taken from."""
        return self.references[0]

    @property
    def shape(self) -> ModelShape:
        """Shape of the merged model."""
        return self.output.shape

    @property
    def output(self) -> Output:
        """Layout of the merged model."""
        return self.layout(self.recipe)

    def layout(self, recipe: Recipe) -> Output:
        """Layout of a recipe of these models.

        Raises:
            RecipeError: The recipe names layers that a model does not have.
        """
        return self._layouts.of(recipe)

    @cached_property
    def _layouts(self) -> Layouts:
        return Layouts(self.checkpoints)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Reference → content_sha256; the first access reads every byte."""
        return self.opener.contents(self.recipe, self.checkpoints)

    @cached_property
    def files(self) -> dict[str, dict[str, str]]:
        """Reference → file → sha256, of each model's config and tokenizer."""
        return self.opener.files(self.recipe, self.also)

    @property
    def samples(self) -> dict[str, Tokens]:
        """Key of a sample → tokens of its documents, of all samples that the recipe and nested recipes name."""
        _ = self.inputs  # reads them
        assert isinstance(self.opener.samples, SampledMoments)
        return dict(self.opener.samples.known)

    @property
    def depths(self) -> dict[str, int]:
        """Reference → number of layers."""
        return {reference: checkpoint.shape.num_layers for reference, checkpoint in self.checkpoints.items()}

    def alike(self, references: Iterable[str]) -> bool:
        """Whether these models have the same shape."""
        shapes = [self.checkpoints[reference].shape for reference in references]
        return all(shape == shapes[0] for shape in shapes)

    def needs_another(self, recipe: Recipe) -> bool:
        """Whether a recipe needs its own resident model, because its layers or its config differ from a candidate's."""
        if (recipe.routing is None) != (self.recipe.routing is None):
            return True
        return not self.layout(recipe).answers_as(self.output)

    def fits(self, recipe: Recipe) -> bool:
        """Whether scores of another recipe are comparable: it has the same vocabulary and chat template."""
        ours = self.recipe
        return (recipe.vocabulary, recipe.chat_template) == (ours.vocabulary, ours.chat_template)

    def plan(self, recipe: Recipe, where: str) -> tuple[TensorOp, ...]:
        """Plan a recipe's merge, which checks it tensor by tensor; reads no weights.

        Raises:
            RecipeError: A parameter has no value at some tensor, or a layer does not exist.
        """
        shapes = {reference: checkpoint.shape for reference, checkpoint in self.checkpoints.items()}
        try:
            return plan(recipe, shapes, self.layout(recipe).shape, specs())
        except RecipeError as error:
            place = f"{where}{error.where.removeprefix('recipe')}" if error.where.startswith("recipe") else error.where
            raise RecipeError(place, error.what, error.allowed, error.next) from None

    def check_baseline(self, recipe: Recipe, where: str) -> None:
        """Check that a baseline of other models can be merged and scored on the same prompts.

        Raises:
            CheckpointError: Two models do not fit together.
        """
        check_fit(recipe, self.checkpoints, self.layout(recipe), where)
        pair = [self.checkpoints[self.donor], self.checkpoints[recipe.references()[0]]]
        check_compatible(pair, where, same_depth=False, by_layer=False)

    def live_numbers(self, recipe: Recipe) -> int:
        """Number of parameters in the resident model of a recipe.

        For routes, all models' layers are resident, shared tensors once; each hop has its own copy of the tensors that
        write to the residual stream.
        """
        laid = self.layout(recipe)
        own = [tensor for tensor in laid.shape.tensors if recipe.routing is None or _of_a_hop(tensor)]
        numbers = sum(math.prod(laid.sizes[tensor.name]) for tensor in own)
        if recipe.routing is None:
            return numbers
        stock = {
            self.origin(reference, tensor.name): math.prod(self.checkpoints[reference].tensors[tensor.name].shape)
            for reference in self.recipe.references()
            for tensor in self.checkpoints[reference].shape.tensors
            if not _of_a_hop(tensor)
        }
        return numbers + sum(stock.values())

    def origin(self, reference: str, tensor: str) -> tuple[int, str]:
        """Checkpoint that stores a tensor, by id: an adapter's base stores what the adapter does not change."""
        checkpoint = self.checkpoints[reference]
        while (under := checkpoint.shares(tensor)) is not None:
            checkpoint = under
        return id(checkpoint), tensor

    def identify(self, recipe: Recipe) -> str:
        """Recipe id of a recipe of these models."""
        return recipe_id(recipe, self.inputs)


def open_models(
    recipe: Recipe,
    where: str,
    watcher: Watcher,
    allow_pickle: bool = False,
    also: Sequence[str] = (),
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Models:
    """Resolve, fetch or train, open, and compare the models of a recipe.

    Args:
        recipe: The recipe, or its frame.
        where: File and key of the recipe, for errors.
        watcher: Shows what is being prepared.
        allow_pickle: Read pickled weights of models without safetensors.
        also: Additional models, which only baselines use; `Models.check_baseline` checks whether they fit.
        recipes: Reference → recipe, of nested recipes that are not read from files.

    Raises:
        CheckpointError: A model is missing, damaged, or does not fit the others.
        RecipeError: A nested recipe is invalid, or a layer does not exist.
        Problems: Several of these.
    """
    register_schemes()
    samples = SampledMoments(default_cache(), progress=watcher.preparing)
    opener = Opener(default_cache(), watcher.preparing, allow_pickle, recipes or {}, samples=samples)
    further = tuple(dict.fromkeys(reference for reference in also if reference not in recipe.references()))
    _open_each(opener, recipe, further, where)
    _check_settings(opener.as_they_are(recipe, further).values())
    models = Models(opener.inputs(recipe, further), recipe, opener, further)
    for checkpoint in models.checkpoints.values():
        for text in checkpoint.notes:
            watcher.note(text)
    check_fit(recipe, models.checkpoints, models.output, where)
    for text in _other_settings(models):
        watcher.note(text)
    return models


def _open_each(opener: Opener, recipe: Recipe, further: Sequence[str], where: str) -> None:
    """Open every model, so that all that fail are reported at once.

    Raises:
        InputError: A model cannot be opened; `Problems` if there are several problems.
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


def _check_settings(checkpoints: Iterable[Checkpoint]) -> None:
    """Check every config, and the files of the donor that the output takes.

    Raises:
        CheckpointError: transformers rejects a config, or a file is damaged. The message names the file.
    """
    donor, *others = checkpoints
    for checkpoint in (donor, *others):
        settings(checkpoint.config, str(checkpoint.folder / CONFIG))
    for folder in (donor.folder, donor.tokenizer_folder):
        generation_config(folder)
    tokenizer_files.check(donor.tokenizer_folder)


def _at_its_key(error: InputError, recipe: Recipe, reference: str, where: str, recipes: Container[str]) -> InputError:
    """An error about a model, located at the recipe's key; errors about one of its files keep the file."""
    key = next(_keys(recipe.to_dict(), reference), None)
    # `split` comes last: for an invalid reference it raised the error itself
    if key is None or (error.where != reference and error.where not in split(reference, recipes)):
        return error
    return type(error)(join(where, *key), f"{error.where}: {error.what}", error.allowed, error.next)


def _keys(node: Any, reference: str) -> Iterator[tuple[str | int, ...]]:
    """Keys at which a recipe, as plain data, names a model."""
    entries = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        if key in ("model", "base_model") and value == reference:
            yield (key,)
        yield from ((key, *rest) for rest in _keys(value, reference))


def _of_a_hop(tensor: TensorSpec) -> bool:
    """Whether each route has its own copy of a tensor: those scaled per hop, and those outside of layers."""
    return tensor.layer is None or tensor.writes_residual


def _other_settings(models: Models) -> list[str]:
    """Notes on models whose configs differ from the donor's, which the merge is scored with."""
    donor, found = models.checkpoints[models.donor].config, []
    for reference, checkpoint in models.checkpoints.items():
        differing = differences(checkpoint.config, donor, str(checkpoint.folder / CONFIG))
        relevant = {key: pair for key, pair in differing.items() if key not in checkpoint.family.of_layers}
        if relevant:
            what = ", ".join(f"{key} {own!r} instead of {other!r}" for key, (own, other) in relevant.items())
            rule = "a merge is scored and written with the config of its base_model, or else of its first model"
            rule = (
                rule if models.recipe.routing is None else "a route is scored and written with its first model's config"
            )
            found.append(f"{reference}: its config has {what} as in {models.donor}; {rule}")
    return found
