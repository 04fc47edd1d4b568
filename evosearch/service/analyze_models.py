"""Models that `evosearch analyze` compares: those of a recipe, or those listed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evosearch.errors import RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Watcher
from evosearch.setup.models import Models, open_models


@dataclass(frozen=True)
class Analyzed:
    """What is analyzed.

    Attributes:
        recipe: The recipe; for listed models their uniform average.
        is_recipe: Whether a recipe was given.
        base: The base; None if there is none.
        parents: The models without the base.
        models: All of them, opened.
        title: Name for titles and errors.
    """

    recipe: Recipe
    is_recipe: bool
    base: str | None
    parents: tuple[str, ...]
    models: Models
    title: str


def open_analyzed(named: Sequence[str], base: str | None, watcher: Watcher, allow_pickle: bool = False) -> Analyzed:
    """Read the recipe, or take the listed models, and open them.

    Args:
        named: One recipe file, or references of models.
        base: Base of the changes; default: that of the recipe.
        watcher: Shows progress and notes.
        allow_pickle: Read pickled weights of models without safetensors.

    Raises:
        InputError: The recipe is wrong or a route, or the models do not fit together.
    """
    is_recipe = len(named) == 1 and files.is_recipe(named[0])
    recipe = _read(named[0], watcher) if is_recipe else _average(named)
    if recipe.routing is not None:
        what = "a route merges no weights, so there are no changes to analyze"
        raise RecipeError(named[0], what, "A recipe with merge_method, or models")
    base = base or (recipe.base_model if is_recipe else None)
    also = () if base is None else (base,)
    models = open_models(recipe, named[0] if is_recipe else "analyze", watcher, allow_pickle, also)
    parents = tuple(reference for reference in recipe.parents if reference != base)
    return Analyzed(recipe, is_recipe, base, parents, models, named[0] if is_recipe else ", ".join(named))


def _read(path: str, watcher: Watcher) -> Recipe:
    recipe = files.load(Path(path))
    for text in checks.check(recipe, specs(), f"{path}: "):
        watcher.note(text)
    return recipe


def _average(named: Sequence[str]) -> Recipe:
    models = [{"model": reference, "parameters": {"weight": 1.0}} for reference in dict.fromkeys(named)]
    return Recipe.model_validate({"merge_method": "linear", "models": models})
