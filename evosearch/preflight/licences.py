"""The models that a search is made of, by what their cards say: licences, and other bases than the recipe's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evosearch.checkpoints import references
from evosearch.checkpoints.licences import Card, card_of
from evosearch.checkpoints.references import default_cache
from evosearch.errors import CheckpointError
from evosearch.materialize.plan import donor_of
from evosearch.recipe import files
from evosearch.recipe.schema import Recipe
from evosearch.search.space.template import frame
from evosearch.spec.diagnostics import Findings
from evosearch.spec.spec import SearchSpec

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Cards:
    """The cards of all models and adapters that a search is made of, nested recipes' too.

    Attributes:
        found: reference of a model or an adapter → its card.
        parents: the models of the recipe, without their adapters.
        base: the recipe's base, where it has one.
    """

    found: Mapping[str, Card]
    parents: tuple[str, ...] = ()
    base: str | None = None

    @property
    def licences(self) -> dict[str, str | None]:
        """What `check --json` prints as `licences`."""
        return {reference: card.licence for reference, card in self.found.items()}

    def notes(self) -> list[str]:
        listed = ", ".join(f"{reference}: {licence or NOT_STATED}" for reference, licence in self.licences.items())
        unread = [f"{card.note}; its licence is not known" for card in self.found.values() if card.note]
        return [f"licences by the models' cards: {listed}", *unread, *self._other_bases()]

    def _other_bases(self) -> list[str]:
        """Models that say they were made of another base; only hub ids tell which one is meant."""
        named = {model: card.bases for model in self.parents if (card := self.found.get(model)) and card.bases}
        base = (self.base or next((bases[0] for bases in named.values()), "")).partition("@")[0]
        if not _HUB_ID.fullmatch(base):
            return []
        whose = "the recipe's base_model is" if self.base else "another's names"
        return [
            f"{model}: its card names the base {', '.join(bases)}, and {whose} {base}"
            for model, bases in named.items()
            if base.lower() not in [one.lower() for one in bases] and model != self.base
        ]


def cards_of(spec: SearchSpec) -> Cards:
    """Read the cards of a spec's models. Fetches their configs, and no weights.

    Raises:
        InputError: a model cannot be had.
    """
    recipe, own = frame(spec.template, spec.where), spec.baselines
    named = (donor_of(recipe), *recipe.references(), *filter(None, (own.base_model, *(own.models or ()))))
    found: dict[str, Card] = {}
    winners = spec.stage.winners.items() if spec.stage else ()
    recipes = {**spec.recipes, **{winner.reference(name): winner.recipe for name, winner in winners}}
    for reference in dict.fromkeys(named):
        _add(reference, found, recipes)
    whole = {reference: _model(reference) for reference in recipe.references()}
    base = whole[recipe.base_model] if recipe.base_model else None
    return Cards(found, tuple(dict.fromkeys(whole.values())), base)


def check_licences(spec: SearchSpec, cards: Cards, findings: Findings) -> None:
    """A problem for every model whose card does not name one of `promotion.licences`."""
    accepted = spec.config.promotion.licences
    if accepted is None:
        return
    for reference, card in cards.found.items():
        if not card.allows(accepted):
            states = f"'{card.licence}'" if card.licence else "none"
            what = f"the card of '{reference}' states {states}"
            allowed = f"Accepted here: {', '.join(accepted)}"
            next_step = "Accept it in promotion.licences, or leave the model out"
            findings.add(CheckpointError(spec.at("promotion.licences"), what, allowed, next_step))


def _add(reference: str, found: dict[str, Card], recipes: Mapping[str, Mapping[str, Any]]) -> None:
    model, adapter = references.split(reference)
    if adapter is not None and adapter not in found:
        found[adapter] = card_of(references.resolve_adapter_settings(adapter, default_cache()))
    if model in recipes or files.is_recipe(model):
        inner: Recipe = files.load_reference(model, recipes)
        for one in (donor_of(inner), *inner.references()):
            _add(one, found, recipes)
    elif model not in found:
        found[model] = card_of(references.resolve_settings(model, default_cache()))


def _model(reference: str) -> str:
    """The model of a reference, without adapter."""
    return references.split(reference)[0]
