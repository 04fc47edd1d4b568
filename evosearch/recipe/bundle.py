"""A recipe and the recipes it is made of as one file: nothing in it leads to another recipe file.

The inner ones come first, each under a name of its own; the recipe itself has none and is what the file stands for.
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
    """The file of a recipe, recipes inside recipes too.

    Args:
        load: reference → the recipe it names; by default from its file.

    Raises:
        RecipeError: an inner recipe's file is missing or no recipe any more.
    """
    recipes: dict[str, Recipe] = {}  # reference → recipe, what it is made of before it

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
    """The references of a recipe that name recipes, without adapters."""
    models = (pieces(reference, exists)[0] for reference in _references(recipe))
    return tuple(dict.fromkeys(model for model in models if is_recipe(model)))


def _references(recipe: Recipe) -> tuple[str, ...]:
    return (*recipe.references(), *filter(None, [recipe.tokenizer_model]))


def _named(recipe: Recipe) -> set[str]:
    """The models and adapters that a recipe names."""
    return {piece for reference in _references(recipe) for piece in pieces(reference, exists)}


def _name(reference: str, taken: set[str]) -> str:
    """A name in a file of recipes: the inner one's own, its stage's or its file's, made unique."""
    path, _, own = reference.rpartition("#")
    stem = own if is_recipe(path) else Path(reference.removeprefix(STAGE)).stem
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", stem) or "recipe"
    return next(name for name in (plain, *(f"{plain}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
