"""Facts about the models of `init`: their base, their vocabularies, and whether they can be merged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.checkpoints import references
from evosearch.checkpoints.adapters.adapter_config import read_config
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.tokenizers import tokenizer
from evosearch.errors import CheckpointError, InputError, in_one
from evosearch.execution.loaders import register_schemes
from evosearch.materialize.inputs import Opener
from evosearch.preflight.licences import NOT_STATED, cards_of
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import Place
from evosearch.search.progress import Watcher
from evosearch.service.watchers import OnlyPreparing
from evosearch.setup.find_base import FoundBase, by_cards, by_weights, of_adapters
from evosearch.setup.lineage import check_lineage
from evosearch.setup.models import open_models
from evosearch.spec.spec import SearchSpec

Ask = Callable[[str, Sequence[str]], str]  # (question, answers) → one of the answers
NO_BASE = "none of these"


@dataclass(frozen=True)
class Found:
    """What the models show.

    Attributes:
        parents: The models that are merged, as given.
        base: Their base.
        opened: Reference → checkpoint, also of the base.
        union: Why the output needs a vocabulary of its own; None if all tokenizers agree.
    """

    parents: tuple[str, ...]
    base: FoundBase | None
    opened: dict[str, Checkpoint]
    union: str | None

    @property
    def first(self) -> Checkpoint:
        """The base, or without one the first model."""
        return next(iter(self.opened.values()))


def look(models: Sequence[str], base: str | None, watcher: Watcher, ask: Ask | None, allow_pickle: bool) -> Found:
    """Open models, and find their base and how their vocabularies differ.

    Args:
        models: References, as given.
        base: Their base, if it was named.
        watcher: Shows what is being fetched.
        ask: Asks the user for the base; None asks nothing.
        allow_pickle: Read pickled weights of models without safetensors.

    Raises:
        InputError: A model cannot be opened, or there is nothing to merge.
    """
    register_schemes()
    opener = Opener(default_cache(), watcher.preparing, allow_pickle)
    named = list(dict.fromkeys(_with_base(model, base) for model in models))
    opened, problems = dict[str, Checkpoint](), list[InputError]()
    for reference in named:
        try:
            opened[reference] = opener.open(reference)
        except InputError as error:
            problems.append(error)
    if problems:
        raise in_one("init", problems)
    found = FoundBase(base, "it was named") if base else _find_base(opened, ask)
    if found is not None and found.reference not in opened:
        opened = {found.reference: opener.open(found.reference), **opened}
    parents = tuple(reference for reference in named if found is None or reference != found.reference)
    if not parents:
        raise CheckpointError("init", "the only model is its own base", next="Name the fine-tuned models")
    if found is None and len(parents) < 2:
        what = f"one model, '{parents[0]}', and its base is not known"
        raise CheckpointError("init", what, "Two or more models, or one with its base", "Add a model, or --base MODEL")
    ordered = [found.reference, *parents] if found else list(parents)
    opened = {reference: opened[reference] for reference in ordered}
    return Found(parents, found, opened, _union(list(opened.values())))


def _with_base(reference: str, base: str | None) -> str:
    """Return `model+adapter` for an adapter alone: on the named base, or on the one that its config names."""
    model, adapter = references.split(reference)
    if adapter is not None:
        return reference
    try:
        references.resolve_settings(model, default_cache())
    except CheckpointError as error:
        try:
            folder = references.resolve_adapter_settings(model, default_cache())
        except CheckpointError:
            raise error from None
        under = base or read_config(folder).base_name
        if not under:
            what = "this is an adapter, and its config names no base model"
            raise CheckpointError(reference, what, next="Name the base: --base MODEL") from None
        return f"{under}+{reference}"
    return reference


def _find_base(opened: dict[str, Checkpoint], ask: Ask | None) -> FoundBase | None:
    names = list(opened)
    found = of_adapters(names) or by_cards(names) or by_weights(opened)
    if found is None and ask is not None and len(names) > 1:
        question = "Neither the model cards nor the weights show a common base. Which of these is the base?"
        answer = ask(question, [*names, NO_BASE])
        found = None if answer == NO_BASE else FoundBase(answer, "it was chosen")
    return found


def _union(checkpoints: Sequence[Checkpoint]) -> str | None:
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for name in first.shape.names(Place.EMBEDDINGS):
            rows = [each.tensors[name].shape[0] for each in (first, other) if name in each.tensors]
            if len(set(rows)) > 1:
                return f"'{first.reference}' and '{other.reference}' have {rows[0]:,} and {rows[1]:,} tokens"
        difference = tokenizer.difference(first.tokenizer_folder, other.tokenizer_folder)
        if difference:
            return f"'{first.reference}' and '{other.reference}' differ: {difference}"
    return None


def check_mergeable(found: Found, watcher: Watcher, allow_pickle: bool, allow_unrelated: bool) -> None:
    """Check that the models have the same tensors, and share a base.

    Raises:
        InputError: They cannot be merged; the message says why.
    """
    opened = open_models(Recipe.model_validate(recipe_of(found, 1.0)), "init", OnlyPreparing(watcher), allow_pickle)
    if not allow_unrelated:
        check_lineage(opened, "init")


def recipe_of(found: Found, weight: Any, local: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the recipe as plain data, with the same weight for every model."""
    base = {} if found.base is None else {"base_model": local(found.base.reference)}
    listed = [{"model": local(model), "parameters": {"weight": weight}} for model in found.parents]
    union = {} if found.union is None else {"tokenizer": {"source": "union"}}
    method = "linear" if found.base is None else "task_arithmetic"
    return {"merge_method": method, **base, "models": listed, **union}


def licences_of(spec: SearchSpec) -> str:
    """Return a sentence on the licences that the models' cards name."""
    cards = cards_of(spec)
    listed = ", ".join(f"{name}: {licence or NOT_STATED}" for name, licence in cards.licences.items())
    different = {licence for licence in cards.licences.values() if licence}
    advice = " They differ: check that they allow a common derivative." if len(different) > 1 else ""
    return f"Licences according to the model cards: {listed}.{advice}"
