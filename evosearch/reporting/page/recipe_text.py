"""The subject's recipe, to copy."""

from evosearch.reporting.page.contents import Code, Section, Text
from evosearch.reporting.page.facts import Facts

TITLE = "Recipe"


def recipe(facts: Facts) -> Section:
    """Return the section."""
    if facts.recipe is None or facts.subject is None:
        return Section("recipe", TITLE, (Text("Left out: no candidate has a score yet."),))
    name = facts.label(facts.subject)
    text = f"The recipe of {name} as evosearch merge reads it, with the models as this search named them."
    return Section(
        "recipe",
        TITLE,
        (Text(text), Code(f"recipe_id {facts.state.recipe_ids[facts.subject]}", facts.recipe.to_yaml())),
    )
