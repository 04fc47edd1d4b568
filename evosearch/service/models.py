"""The models of a recipe, made ready: references resolved, checkpoints opened, fit for each other, hashed."""

from dataclasses import dataclass
from functools import cached_property

from evosearch.checkpoints.compatibility import check_compatible
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.execution.worker import register_schemes
from evosearch.materialize.inputs import Opener
from evosearch.materialize.layout import Output, output
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

    def fits(self, recipe: Recipe) -> bool:
        """Whether another recipe of these models can be scored beside this one: it reads the same tokens."""
        ours = self.recipe
        return (recipe.vocabulary, recipe.chat_template) == (ours.vocabulary, ours.chat_template)

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
    return models
