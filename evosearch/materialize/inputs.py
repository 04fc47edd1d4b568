"""The models of a recipe, made ready to merge: fetched, adapters applied, nested recipes merged, one vocabulary.

A nested recipe is merged once, into the cache, under its recipe_id: what it is made of and how decides its name.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evosearch.checkpoints import references
from evosearch.checkpoints.adapters.apply import apply_adapter
from evosearch.checkpoints.cache.hashes import Hashes
from evosearch.checkpoints.cache.locks import LOCKS, locked
from evosearch.checkpoints.overlay import Overlay
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.references import Progress
from evosearch.checkpoints.sidecar import files_of
from evosearch.checkpoints.writer import TOKENIZER_FILES
from evosearch.errors import CandidateError, RecipeError
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.materialize.vocabulary import in_one_vocabulary
from evosearch.merging.registry import specs
from evosearch.recipe import files
from evosearch.recipe.checks import check
from evosearch.recipe.identity import TOKENIZER_OF, recipe_id
from evosearch.recipe.schema import Recipe

MAX_NESTED = 32  # recipes in one another


@dataclass(frozen=True)
class Opener:
    """How references become checkpoints.

    Attributes:
        cache: where fetched, trained and merged models are kept.
        progress: told what is being done.
        allow_pickle: read pickled weights where a model has no others.
        recipes: reference → recipe as plain data, of models that are recipes: the file of none of these is read.
        near: reference → folder, of models and adapters that lie ready on this node.
    """

    cache: Path
    progress: Progress | None = None
    allow_pickle: bool = False
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    near: Mapping[str, Path] = field(default_factory=dict)
    _within: tuple[str, ...] = field(default=(), repr=False)  # the recipes that are being opened, outermost first
    _opened: dict[str, Checkpoint] = field(default_factory=dict, repr=False, compare=False)
    _read: dict[str, Recipe] = field(default_factory=dict, repr=False, compare=False)  # by the references to them

    def inputs(self, recipe: Recipe, also: Sequence[str] = ()) -> dict[str, Checkpoint]:
        """Reference → checkpoint for every model of a recipe, the donor first, all in the output's vocabulary.

        Args:
            also: further models, which the recipe does not name.

        Raises:
            CheckpointError: a model is missing, damaged, or has no place in the vocabulary.
            RecipeError: a nested recipe is wrong, or is made of itself.
        """
        return in_one_vocabulary(recipe, self.as_they_are(recipe, also), self.cache, self.folder)

    def as_they_are(self, recipe: Recipe, also: Sequence[str] = ()) -> dict[str, Checkpoint]:
        """As `inputs`, each in the vocabulary that it came with; a recipe among them is merged."""
        named = dict.fromkeys((donor_of(recipe), *recipe.references(), *also))
        return {reference: self.open(reference) for reference in named}

    def put(self, checkpoint: Checkpoint) -> None:
        """Use this checkpoint for its reference from now on: the same model, read from another place."""
        self._opened[checkpoint.reference] = checkpoint

    def open(self, reference: str) -> Checkpoint:
        """One model: a checkpoint, `model+adapter`, or a recipe. Opened once: what several share, they share."""
        if reference not in self._opened:
            self._opened[reference] = self._open(reference)
        return self._opened[reference]

    def recipe(self, reference: str) -> Recipe:
        """The recipe that a reference names, of what was opened as it was then.

        Raises:
            RecipeError: see `files.load_reference`.
        """
        return self._read.get(reference) or files.load_reference(reference, self.recipes)

    @property
    def nested(self) -> dict[str, dict[str, Any]]:
        """Reference → recipe as plain data, of all recipes that were opened: `recipes` for an opener elsewhere."""
        return {reference: recipe.to_dict() for reference, recipe in self._read.items()}

    def _open(self, reference: str) -> Checkpoint:
        model, adapter = references.split(reference, self.recipes)
        hashes = Hashes(self.cache)
        if adapter is not None:
            folder = self.near.get(adapter) or references.resolve_adapter(
                adapter, self.cache, self.progress, self.allow_pickle
            )
            return apply_adapter(self.open(model), folder, reference, self.allow_pickle, hashes)
        if files.is_recipe(model):
            return self._open_recipe(model)
        return Checkpoint.open(self._folder(model), reference, self.allow_pickle, hashes)

    def _folder(self, model: str) -> Path:
        return self.near.get(model) or references.resolve(model, self.cache, self.progress, self.allow_pickle)

    def folder(self, reference: str) -> Path:
        """The folder of a model that is named for its tokenizer alone."""
        model, _ = references.split(reference, self.recipes)
        if files.is_recipe(model):
            return self._open_recipe(model).tokenizer_folder
        return self._folder(model)

    def identify(self, recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> str:
        """The recipe_id; reads every byte of the inputs once."""
        return recipe_id(recipe, self.contents(recipe, inputs))

    def contents(self, recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> dict[str, str]:
        """Reference → content_sha256, for all that a recipe names; with `tokenizer:` before it, of its tokenizer.

        Tokenizers are in it where the recipe makes a new one of them: they then decide which row goes where.
        """
        found = {reference: checkpoint.content_sha256() for reference, checkpoint in inputs.items()}
        if recipe.vocabulary is not None or recipe.chat_template is not None:
            found |= {TOKENIZER_OF + name: tokenizer_sha256(self.open(name).tokenizer_folder) for name in inputs}
        source = recipe.tokenizer_model
        if source is not None and source not in found:
            found[source] = tokenizer_sha256(self.folder(source))
        return found

    def files(self, recipe: Recipe, also: Sequence[str] = ()) -> dict[str, dict[str, str]]:
        """Reference → file → sha256, of config and tokenizer of every model as it came."""
        return {reference: files_of(checkpoint) for reference, checkpoint in self.as_they_are(recipe, also).items()}

    def _open_recipe(self, reference: str) -> Checkpoint:
        if reference in self._within:
            chain = " → ".join((*self._within[self._within.index(reference) :], reference))
            raise RecipeError(reference, f"the recipe is made of itself: {chain}", next="Break the circle")
        if len(self._within) == MAX_NESTED:
            raise RecipeError(reference, f"more than {MAX_NESTED} recipes in one another", next="Merge some beforehand")
        within = replace(self, _within=(*self._within, reference))
        recipe = self.recipe(reference)
        check(recipe, specs(), f"{reference}: ")
        inputs = within.inputs(recipe)
        name = within.identify(recipe, inputs)
        folder = self.cache / "merged" / _folder_name(name, inputs[donor_of(recipe)])
        if not (folder / CONFIG).is_file():
            lock = self.cache / LOCKS / f"merge-{folder.name}"
            with locked(lock, lambda: self._tell(f"waiting for another process to merge {reference}", 0.0)):
                self._merge(recipe, reference, inputs, folder)
        self._read[reference] = recipe
        return Overlay(Checkpoint.open(folder, reference), reference, lambda: name, {})

    def _merge(self, recipe: Recipe, reference: str, inputs: Mapping[str, Checkpoint], folder: Path) -> None:
        """Write a nested recipe's model, unless another process has while this one waited."""
        if (folder / CONFIG).is_file():
            return
        for left in folder.parent.glob(f".{folder.name}.*.partial"):  # of a process that was killed: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        self._tell(f"merging {reference}", 0.0)
        try:
            write_checkpoint(recipe, inputs, folder, donor_of(recipe))
        except RecipeError as error:
            raise RecipeError(f"{reference}: {error.where}", error.what, error.allowed, error.next) from None
        except CandidateError as error:
            raise RecipeError(reference, error.reason, next="Mend this recipe") from error
        self._tell(f"merging {reference}", 1.0)

    def _tell(self, what: str, part: float) -> None:
        if self.progress:
            self.progress(what, part)


def tokenizer_sha256(folder: Path) -> str:
    """sha256 (hex) over a folder's tokenizer and chat template files, by name."""
    digest = hashlib.sha256()
    named = [folder / name for name in TOKENIZER_FILES]
    for path in sorted(file for entry in named for file in (entry, *entry.rglob("*")) if file.is_file()):
        digest.update(f"{path.relative_to(folder)}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _folder_name(recipe_id: str, donor: Checkpoint) -> str:
    """The recipe_id is of the weights; config and tokenizer, which the folder holds as well, are the donor's."""
    settings = {
        key: value for key, value in donor.config.items() if key not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.sha256(f"{recipe_id}\n{json.dumps(settings, sort_keys=True)}\n".encode())
    digest.update(tokenizer_sha256(donor.tokenizer_folder).encode())
    generation = donor.folder / "generation_config.json"
    digest.update(generation.read_bytes() if generation.is_file() else b"")
    return digest.hexdigest()
