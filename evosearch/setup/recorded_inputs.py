"""Digests of a recipe's models as its file records them, and their comparison with the models of this machine."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evosearch.checkpoints import references
from evosearch.checkpoints.sidecar import files_of
from evosearch.errors import InputError, in_one
from evosearch.materialize.inputs import Opener, tokenizer_sha256
from evosearch.materialize.on_disk import WeightDigests
from evosearch.recipe.files import is_recipe
from evosearch.recipe.provenance import KEY, Provenance, RecordedInput
from evosearch.recipe.schema import Recipe
from evosearch.setup.models import Models
from evosearch.untrusted import SNAPSHOTS

TOKENIZER = "tokenizer"  # of a model that is only used for its tokenizer: all of its files together
REMOVE = f"remove the section `{KEY}` from the file"
COMMIT = re.compile("[0-9a-f]{40}")
Kind = Literal["input", "recipe", "weights", "tensor", "suite", "items", "score", "item", "signature"]


@dataclass(frozen=True)
class Mismatch:
    """A recorded value that this machine does not reproduce.

    Attributes:
        kind: What differs.
        name: Which one: a model or a file of it, a tensor, `split/task`, or an item.
        recorded: The value in the recipe's file; None if it is missing there.
        found: The value found here; None if it is missing here.
    """

    kind: Kind
    name: str
    recorded: str | None
    found: str | None

    def __str__(self) -> str:
        then, now = (_short(value) for value in (self.recorded, self.found))
        return f"{self.kind} {self.name}: recorded {then}, found {now}"


def record_inputs(recipe: Recipe, models: Models) -> tuple[tuple[RecordedInput, ...], dict[str, str]]:
    """Return digests of the models of a recipe and of its nested recipes, and the commits of those from the hub.

    Returns:
        The records, with references as in the recipes, and hub id as written → hub id with its commit.
    """
    opener = models.opener
    found: dict[str, RecordedInput] = {}
    commits: dict[str, str] = {}
    for reference, merged in _leaves(recipe, opener):
        if reference not in found:
            found[reference] = _record(reference, merged, opener)
        commits |= _commits(reference, opener)
    return tuple(found.values()), commits


def models_by_content(models: Models) -> dict[str, str]:
    """Return content_sha256 → reference, of a recipe's models and of those of its nested recipes."""
    inner = [reference for reference, merged in _leaves(models.recipe, models.opener) if merged]
    found = {models.opener.open(reference).content_sha256(): reference for reference in inner}
    return found | {sha: reference for reference, sha in models.inputs.items()}


def changed_inputs(recorded: Sequence[RecordedInput], models: Models) -> list[Mismatch]:
    """Return how the models differ from what a recipe's file records."""
    found: list[Mismatch] = []
    for then in recorded:
        now = _record(then.model, then.content_sha256 is not None, models.opener)
        if then.content_sha256 != now.content_sha256:
            found.append(Mismatch("input", f"{then.model}: weights", then.content_sha256, now.content_sha256))
        for file in sorted({*then.files, *now.files}):
            pair = then.files.get(file), now.files.get(file)
            if pair[0] != pair[1]:
                found.append(Mismatch("input", f"{then.model}/{file}", *pair))
    return found


def changed_recipe(recorded: Provenance, models: Models, recipe_id: str) -> list[Mismatch]:
    """Return how a recipe and its models differ from what the recipe's file records."""
    found = changed_inputs(recorded.inputs, models)
    if not found and recorded.recipe_id != recipe_id:
        found.append(Mismatch("recipe", "parameters", recorded.recipe_id, recipe_id))
    return found


def check_recorded(recorded: Provenance, models: Models, recipe_id: str, where: str) -> None:
    """Check that a recipe and its models are what the recipe's file records.

    Raises:
        InputError: One differs; `Problems` if several do.
    """
    advice = f"Use the recorded model. To merge this one instead, {REMOVE}"
    refuse(changed_recipe(recorded, models, recipe_id), where, advice)


def changed_weights(recorded: Provenance, digests: WeightDigests) -> list[Mismatch]:
    """Return how merged weights differ from what a recipe's file records, by tensor if the file lists them."""
    if recorded.weights_sha256 in (None, digests.weights_sha256):
        return []
    tensors = sorted({*recorded.tensors, *digests.tensors}) if recorded.tensors else []
    pairs = [(name, recorded.tensors.get(name), digests.tensors.get(name)) for name in tensors]
    differing = [Mismatch("tensor", *pair) for pair in pairs if pair[1] != pair[2]]
    return differing or [Mismatch("weights", "all tensors", recorded.weights_sha256, digests.weights_sha256)]


def refuse(found: Sequence[Mismatch], where: str, next: str) -> None:
    """Raise the differences as errors, if there are any.

    Raises:
        InputError: There is one; `Problems` if there are several.
    """
    if found:
        raise in_one(where, [InputError(f"{where}: {KEY}", str(one), next=next) for one in found])


def _leaves(recipe: Recipe, opener: Opener) -> Iterator[tuple[str, bool]]:
    """Yield the references of models that are no recipes, and whether their weights are used."""
    for reference in recipe.references():
        model = references.split(reference, opener.recipes)[0]
        if model in opener.recipes or is_recipe(model):
            yield from _leaves(opener.recipe(model), opener)
        else:
            yield reference, True
    source = recipe.tokenizer_model
    if source is not None and source not in recipe.references() and not is_recipe(references.split(source)[0]):
        yield source, False


def _record(reference: str, merged: bool, opener: Opener) -> RecordedInput:
    if not merged:
        return RecordedInput(model=reference, files={TOKENIZER: tokenizer_sha256(opener.folder(reference))})
    checkpoint = opener.open(reference)
    return RecordedInput(model=reference, content_sha256=checkpoint.content_sha256(), files=files_of(checkpoint))


def _commits(reference: str, opener: Opener) -> dict[str, str]:
    """Return hub id → hub id with commit, of a model and its adapter."""
    model, adapter = references.split(reference)
    folders: Mapping[str, Path] = {}
    if references.is_hub_id(model):
        folders = {model: opener.folder(model)}
    if adapter is not None and references.is_hub_id(adapter):
        folders = {**folders, adapter: references.resolve_adapter(adapter, opener.cache, None, opener.allow_pickle)}
    return {
        name: f"{name.partition('@')[0]}@{folder.name}"
        for name, folder in folders.items()
        if folder.parent.name == SNAPSHOTS and COMMIT.fullmatch(folder.name)
    }


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value[:12] if re.fullmatch("[0-9a-f]{64}", value) else value
