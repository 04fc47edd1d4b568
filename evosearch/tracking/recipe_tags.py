"""Recipes as tags of runs: no candidate needs an artifact folder of its own."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from evosearch.documents import dump
from evosearch.recipe.bundle import bundle
from evosearch.recipe.files import load_reference
from evosearch.recipe.schema import Recipe

RECIPE = "recipe"  # tag with a recipe as YAML; longer ones continue in `recipe/2`, `recipe/3`, …
RECIPE_FILE = "recipe.yaml"  # artifact with the same text, of baselines and finalists
TAG_CHARACTERS = 8000  # MLflow's limit for a value
MOST = 8  # tags of a recipe; one that needs more is an artifact only


def recipe_tags(text: str) -> dict[str, str]:
    """Divide a recipe's text into tags; return none if it needs too many."""
    parts = [text[start : start + TAG_CHARACTERS] for start in range(0, len(text), TAG_CHARACTERS)]
    return {_name(index): part for index, part in enumerate(parts)} if len(parts) <= MOST else {}


def recipe_of(tags: Mapping[str, str]) -> str | None:
    """Return the text of a recipe from the tags of its run; None if it is not there."""
    parts = [tags[_name(index)] for index in range(MOST) if _name(index) in tags]
    return "".join(parts) or None


def recipe_text(recipe: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a recipe as YAML, with the known recipes that it refers to."""
    if not known:
        return dump(recipe)
    return bundle(Recipe.model_validate(recipe), partial(load_reference, known=known)).to_yaml()


def _name(index: int) -> str:
    return RECIPE if index == 0 else f"{RECIPE}/{index + 1}"
