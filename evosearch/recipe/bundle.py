"""A recipe and the recipes it is made of as one file: nothing in it leads to another recipe file.

The inner ones come first, each under a name of its own; the recipe itself has none and is what the file stands for.
"""

import re
from collections.abc import Callable
from pathlib import Path

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.recipe.files import RecipeFile, anchor, exists, is_recipe, load_reference, pieces
from evosearch.recipe.schema import Recipe
from evosearch.recipe.tokens import BASE, UNION


def bundle(recipe: Recipe, load: Callable[[str], Recipe] = load_reference) -> RecipeFile:
    """The file of a recipe, recipes inside recipes too.

    Args:
        load: reference → the recipe it names; by default from its file.

    Raises:
        RecipeError: an inner recipe's file is missing or no recipe any more.
    """
    found: dict[str | None, Recipe] = {}
    names: dict[str, str] = {}  # reference → name in the file

    def inline(outer: Recipe) -> Recipe:
        for reference in inner(outer):
            if reference not in names:
                own = inline(load(reference))
                names[reference] = _name(reference, {BASE, UNION, *names.values()})
                found[names[reference]] = own
        data = anchor(outer.to_dict(), Path("/"), names)
        return documents.validate(Recipe, data, "recipe", RecipeError)

    found[None] = inline(recipe)
    return RecipeFile(found)


def inner(recipe: Recipe) -> tuple[str, ...]:
    """The references of a recipe that name recipe files, without adapters."""
    named = [*recipe.references(), *filter(None, [recipe.tokenizer_model])]
    models = (pieces(reference, exists)[0] for reference in named)
    return tuple(dict.fromkeys(model for model in models if is_recipe(model)))


def _name(reference: str, taken: set[str]) -> str:
    """A name in a file of recipes: the inner one's own, or its file's, made unique."""
    path, _, own = reference.rpartition("#")
    stem = own if is_recipe(path) else Path(reference).stem
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", stem) or "recipe"
    return next(name for name in (plain, *(f"{plain}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
