"""Finds the base of fine-tunes: by their adapters, by their model cards, or among the models by their weights."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from evosearch.checkpoints import references
from evosearch.checkpoints.model_card import card_of
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.errors import InputError
from evosearch.setup.lineage import compare

# Cosine of two models' changes. From their base, changes of fine-tunes are nearly orthogonal. From one of them, the
# others share the way back to the base: the cosine is 0.5 for changes of equal length, and 0.71 to the base's own.
MOST_SHARED = 0.4
LEAST_MODELS = 3  # two models alone do not show which of them is the base of the other


@dataclass(frozen=True)
class FoundBase:
    """A base model, and how it was found.

    Attributes:
        reference: Its reference.
        why: How it was found, as the end of a sentence: `the adapters are applied to it`.
    """

    reference: str
    why: str


def of_adapters(models: Sequence[str]) -> FoundBase | None:
    """Return the model that every `model+adapter` applies its adapter to; None if one has no adapter, or another."""
    heads = {model for model, adapter in map(references.split, models) if adapter is not None}
    every = all(adapter is not None or model in heads for model, adapter in map(references.split, models))
    return FoundBase(heads.pop(), "the adapters are applied to it") if every and len(heads) == 1 else None


def by_cards(models: Sequence[str]) -> FoundBase | None:
    """Return the base that the model cards name, as one of the models or a hub id; None if they do not agree.

    A model that is the base itself needs no card.
    """
    named: dict[str, tuple[str, ...]] = {}
    for reference in models:
        with suppress(InputError):  # it cannot be opened, which is reported elsewhere
            model, _ = references.split(reference)
            named[reference] = card_of(references.resolve_settings(model, default_cache())).bases
    bases = {each[0].lower(): each[0] for each in named.values() if len(each) == 1}
    if len(bases) != 1:
        return None
    (base,) = bases.values()
    own = next((model for model in models if model.partition("@")[0].lower() == base.lower()), None)
    silent = [model for model, each in named.items() if not each and model != own]
    if silent or (own is None and not references.is_hub_id(base)):
        return None
    return FoundBase(own or base, "the model cards name it")


def by_weights(models: Mapping[str, Checkpoint]) -> FoundBase | None:
    """Return the model that the others are fine-tunes of; None if the weights do not show it.

    The changes of fine-tunes from their base are nearly orthogonal. From another fine-tune they are not: every change
    then contains the way back to the base.

    Args:
        models: Reference → checkpoint.
    """
    if len(models) < LEAST_MODELS:
        return None
    best: tuple[float, str] | None = None
    for name, checkpoint in models.items():
        figures = compare(checkpoint, [other for each, other in models.items() if each != name])
        shared = [abs(cosine) for one in figures for cosine in one.others if cosine is not None]
        if not all(one.related for one in figures) or not shared or max(shared) > MOST_SHARED:
            continue
        distance = sum(one.relative.get("matrices", 0.0) for one in figures)
        if best is None or distance < best[0]:
            best = distance, name
    return None if best is None else FoundBase(best[1], "the others' changes from it have little in common")
