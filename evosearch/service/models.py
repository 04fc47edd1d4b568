"""The models of a recipe, made ready: references resolved, checkpoints opened, fit for each other, hashed."""

from dataclasses import dataclass
from functools import cached_property

from evosearch.checkpoints.compatibility import check_compatible
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.errors import RecipeError
from evosearch.execution.worker import register_schemes
from evosearch.materialize.forward import differences
from evosearch.materialize.inputs import Opener
from evosearch.materialize.layout import Output, output
from evosearch.materialize.plan import plan
from evosearch.merging.registry import specs
from evosearch.recipe.identity import recipe_id
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape
from evosearch.search.watching import Watcher


@dataclass(frozen=True)
class Models:
    """Opened checkpoints by reference; the first gives config and tokenizer.

    Attributes:
        recipe: the one they were opened for, or its frame: which models are named, how their layers are stacked.
    """

    checkpoints: dict[str, Checkpoint]
    recipe: Recipe
    opener: Opener

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
        """reference → content_sha256; reads every byte once."""
        return self.opener.contents(self.recipe, self.checkpoints)

    @property
    def alike(self) -> bool:
        """Whether all models have the same layers."""
        return all(checkpoint.shape == self.checkpoints[self.donor].shape for checkpoint in self.checkpoints.values())

    def needs_another(self, recipe: Recipe) -> bool:
        """Whether a recipe of these models is scored in a model of its own: it has other layers, or another config."""
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

    def identify(self, recipe: Recipe) -> str:
        return recipe_id(recipe, self.inputs)


def open_models(recipe: Recipe, where: str, watcher: Watcher, allow_pickle: bool = False) -> Models:
    """Resolve, fetch or train, open, and compare the models that a recipe names.

    Raises:
        CheckpointError: one is missing, damaged, or does not fit the others.
        RecipeError: a nested recipe is wrong, or layers are asked for that are not there.
    """
    register_schemes()
    opener = Opener(default_cache(), watcher.preparing, allow_pickle)
    models = Models(opener.inputs(recipe), recipe, opener)
    for checkpoint in models.checkpoints.values():
        for text in checkpoint.notes:
            watcher.note(text)
    same_depth = models.output.shape is models.checkpoints[models.donor].shape
    check_compatible(list(models.checkpoints.values()), where, same_depth)
    for text in _other_settings(models):
        watcher.note(text)
    return models


def _other_settings(models: Models) -> list[str]:
    """Which models have other configs than the donor: one of them alone is scored under its own, a merge under one."""
    donor, found = models.checkpoints[models.donor].config, []
    for reference, checkpoint in models.checkpoints.items():
        differing = differences(checkpoint.config, donor, str(checkpoint.folder / CONFIG))
        telling = {key: pair for key, pair in differing.items() if key not in checkpoint.family.of_layers}
        if telling:
            what = ", ".join(f"{key} {own!r} instead of {other!r}" for key, (own, other) in telling.items())
            rule = "a merge is scored and written under the config of its base_model, or else of its first model"
            found.append(f"{reference}: its config has {what} as {models.donor} has it; {rule}")
    return found
