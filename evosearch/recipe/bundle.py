"""Bundling of a recipe with its nested recipes into one self-contained file.

Nested recipes come first, each with a name. The recipe itself comes last, without one, and is what the file denotes.
"""

import re
from collections.abc import Callable
from pathlib import Path

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.recipe.files import STAGE, RecipeFile, anchor, exists, is_recipe, load_reference, pieces
from evosearch.recipe.schema import Recipe
from evosearch.recipe.tokens import BASE, UNION


def bundle(recipe: Recipe, load: Callable[[str], Recipe] = load_reference) -> RecipeFile:
    """Bundle a recipe with its nested recipes, at any depth.

    Args:
        recipe: The recipe.
        load: Loads the recipe that a reference names; by default from its file.

    Raises:
        RecipeError: The file of a nested recipe is missing, or is not a recipe.
    """
    recipes: dict[str, Recipe] = {}  # reference → recipe, after the recipes nested in it

    def collect(outer: Recipe) -> None:
        for reference in inner(outer):
            if reference not in recipes:
                own = load(reference)
                collect(own)
                recipes[reference] = own

    collect(recipe)
    taken = {BASE, UNION, *(piece for one in (*recipes.values(), recipe) for piece in _named(one))}
    names: dict[str, str] = {}  # reference → name in the file
    for reference in recipes:
        names[reference] = _name(reference, {*taken, *names.values()})

    def inline(outer: Recipe) -> Recipe:
        return documents.validate(Recipe, anchor(outer.to_dict(), Path("/"), names), "recipe", RecipeError)

    return RecipeFile({names[reference]: inline(own) for reference, own in recipes.items()} | {None: inline(recipe)})


def inner(recipe: Recipe) -> tuple[str, ...]:
    """Return the references of a recipe that name recipes, without their adapters."""
    models = (pieces(reference, exists)[0] for reference in _references(recipe))
    return tuple(dict.fromkeys(model for model in models if is_recipe(model)))


def _references(recipe: Recipe) -> tuple[str, ...]:
    return (*recipe.references(), *filter(None, [recipe.tokenizer_model]))


def _named(recipe: Recipe) -> set[str]:
    """Return the models and adapters that a recipe names."""
    return {piece for reference in _references(recipe) for piece in pieces(reference, exists)}


def _name(reference: str, taken: set[str]) -> str:
    """Return a unique name for a nested recipe, derived from its own name, its stage or its file."""
    path, _, own = reference.rpartition("#")
    stem = own if is_recipe(path) else Path(reference.removeprefix(STAGE)).stem
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", stem) or "recipe"
    return next(name for name in (plain, *(f"{plain}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
