"""The models of a recipe, made ready: references resolved, checkpoints opened, fit for each other, hashed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from evosearch.checkpoints.compatibility import check_compatible
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.execution.worker import open_checkpoints, register_schemes
from evosearch.recipe.identity import recipe_id
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape
from evosearch.search.watching import Watcher


@dataclass(frozen=True)
class Models:
    """Opened checkpoints by reference; the first gives config and tokenizer."""

    checkpoints: dict[str, Checkpoint]

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(self.checkpoints)

    @property
    def donor(self) -> str:
        return self.references[0]

    @property
    def shape(self) -> ModelShape:
        return self.checkpoints[self.donor].shape

    @cached_property
    def inputs(self) -> dict[str, str]:
        """reference → content_sha256; reads every byte once."""
        return {reference: checkpoint.content_sha256() for reference, checkpoint in self.checkpoints.items()}

    def identify(self, recipe: Recipe) -> str:
        return recipe_id(recipe, self.inputs)


def open_models(references: Sequence[str], where: str, watcher: Watcher) -> Models:
    """Resolve, fetch or train, open, and compare the models that a recipe names.

    Raises:
        CheckpointError: one is missing, damaged, or does not fit the others.
    """
    register_schemes()
    checkpoints = open_checkpoints(tuple(references), default_cache(), watcher.preparing)
    check_compatible(list(checkpoints.values()), where)
    return Models(checkpoints)


def references_in(template: object) -> tuple[str, ...]:
    """Every model that a raw recipe names, holes and all; `base_model` first."""
    base: list[str] = []
    others: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "base_model" and isinstance(value, str):
                    base.append(value)
                elif key == "model" and isinstance(value, str):
                    others.append(value)
                else:
                    walk(value)
        elif isinstance(node, list | tuple):
            for item in node:
                walk(item)

    walk(template)
    return tuple(dict.fromkeys([*base, *others]))
