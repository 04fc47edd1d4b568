"""Recipes as tags of runs: no candidate needs an artifact folder of its own."""

from collections.abc import Mapping

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


def _name(index: int) -> str:
    return RECIPE if index == 0 else f"{RECIPE}/{index + 1}"
