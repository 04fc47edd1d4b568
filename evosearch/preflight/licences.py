"""Model cards of a search: licences, and base models that differ from the recipe's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from evosearch.checkpoints import references
from evosearch.checkpoints.model_card import Card
from evosearch.errors import CheckpointError
from evosearch.materialize.plan import donor_of
from evosearch.setup.model_cards import add_cards
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.spec import SearchSpec

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Cards:
    """Cards of all models and adapters of a search, including those of nested recipes.

    Attributes:
        found: Model or adapter → its card.
        parents: Models of the recipe, without their adapters.
        base: The recipe's base model, if any.
    """

    found: Mapping[str, Card]
    parents: tuple[str, ...] = ()
    base: str | None = None

    @property
    def licences(self) -> dict[str, str | None]:
        """Model or adapter → licence, as `check --json` prints it."""
        return {reference: card.licence for reference, card in self.found.items()}

    def notes(self) -> list[str]:
        """Notes on licences, unreadable cards and other base models."""
        listed = ", ".join(f"{reference}: {licence or NOT_STATED}" for reference, licence in self.licences.items())
        unread = [f"{card.note}; its licence is unknown" for card in self.found.values() if card.note]
        return [f"licences according to the model cards: {listed}", *unread, *self._other_bases()]

    def _other_bases(self) -> list[str]:
        """Models whose card names another base model; only hub ids can be compared."""
        named = {model: card.bases for model in self.parents if (card := self.found.get(model)) and card.bases}
        base = (self.base or next((bases[0] for bases in named.values()), "")).partition("@")[0]
        if not _HUB_ID.fullmatch(base):
            return []
        other = "the recipe's base_model is" if self.base else "another card names"
        return [
            f"{model}: its card names the base model {', '.join(bases)}, and {other} {base}"
            for model, bases in named.items()
            if base.lower() not in [one.lower() for one in bases] and model != self.base
        ]


def cards_of(spec: SearchSpec) -> Cards:
    """Read the cards of a spec's models. Fetches their configs, but no weights.

    Raises:
        InputError: A model cannot be fetched.
    """
    recipe, own = spec.frame, spec.baselines
    named = (donor_of(recipe), *recipe.references(), *filter(None, (own.base_model, *(own.models or ()))))
    found: dict[str, Card] = {}
    winners = spec.stage.winners.items() if spec.stage else ()
    recipes = {**spec.recipes, **{winner.reference(name): winner.recipe for name, winner in winners}}
    for reference in dict.fromkeys(named):
        add_cards(reference, found, recipes)
    models = {reference: references.split(reference)[0] for reference in recipe.references()}  # without adapters
    base = models[recipe.base_model] if recipe.base_model else None
    return Cards(found, tuple(dict.fromkeys(models.values())), base)


def check_licences(spec: SearchSpec, cards: Cards, diagnostics: Diagnostics) -> None:
    """Record a problem for every model whose licence is not in `promotion.licences`."""
    accepted = spec.config.promotion.licences
    if accepted is None:
        return
    for reference, card in cards.found.items():
        if not card.allows(accepted):
            states = f"'{card.licence}'" if card.licence else NOT_STATED
            what = f"the licence of '{reference}' is {states}"
            allowed = f"Accepted here: {', '.join(accepted)}"
            next_step = "Add it to promotion.licences, or remove the model"
            diagnostics.add(CheckpointError(spec.at("promotion.licences"), what, allowed, next_step))
