"""Model cards of the models that a recipe is made of, also of nested recipes."""

from collections.abc import Mapping
from typing import Any

from evosearch.checkpoints import references
from evosearch.checkpoints.model_card import Card, card_of
from evosearch.checkpoints.references import default_cache
from evosearch.materialize.plan import donor_of
from evosearch.recipe import files
from evosearch.recipe.schema import Recipe


def add_cards(reference: str, found: dict[str, Card], recipes: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the cards of a model and its adapter, or of the models of a recipe. Fetches configs, but no weights.

    Args:
        reference: The model or recipe.
        found: Model or adapter → its card; entries are added.
        recipes: Reference → recipe as plain data, of recipes that are not read from files.

    Raises:
        InputError: A model cannot be fetched.
    """
    model, adapter = references.split(reference, recipes)
    if adapter is not None and adapter not in found:
        found[adapter] = card_of(references.resolve_adapter_settings(adapter, default_cache()))
    if model in recipes or files.is_recipe(model):
        inner: Recipe = files.load_reference(model, recipes)
        for one in (donor_of(inner), *inner.references()):
            add_cards(one, found, recipes)
    elif model not in found:
        found[model] = card_of(references.resolve_settings(model, default_cache()))
