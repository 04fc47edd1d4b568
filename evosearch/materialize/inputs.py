"""The models of a recipe, made ready to merge: fetched, adapters applied, nested recipes merged, one vocabulary.

A nested recipe is merged once, into the cache, under its recipe_id: what it is made of and how decides its name.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evosearch.checkpoints import references
from evosearch.checkpoints.adapters import apply_adapter
from evosearch.checkpoints.overlay import Overlay
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.references import Progress
from evosearch.checkpoints.writer import TOKENIZER_FILES
from evosearch.errors import CandidateError, CheckpointError, RecipeError
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
    """

    cache: Path
    progress: Progress | None = None
    allow_pickle: bool = False
    _within: tuple[str, ...] = field(default=(), repr=False)  # the recipes that are being opened, outermost first
    _opened: dict[str, Checkpoint] = field(default_factory=dict, repr=False, compare=False)

    def inputs(self, recipe: Recipe, also: Sequence[str] = ()) -> dict[str, Checkpoint]:
        """reference → checkpoint for every model of a recipe, the donor first, all in the output's vocabulary.

        Args:
            also: further models, which the recipe does not name.

        Raises:
            CheckpointError: a model is missing, damaged, or has no place in the vocabulary.
            RecipeError: a nested recipe is wrong, or is made of itself.
        """
        named = dict.fromkeys((donor_of(recipe), *recipe.references(), *also))
        opened = {reference: self.open(reference) for reference in named}
        return in_one_vocabulary(recipe, opened, self.cache, self.folder)

    def open(self, reference: str) -> Checkpoint:
        """One model: a checkpoint, `model+adapter`, or a recipe. Opened once: what several share, they share."""
        if reference not in self._opened:
            self._opened[reference] = self._open(reference)
        return self._opened[reference]

    def _open(self, reference: str) -> Checkpoint:
        model, adapter = references.split(reference)
        if adapter is not None:
            folder = references.resolve_adapter(adapter, self.cache, self.progress, self.allow_pickle)
            return apply_adapter(self.open(model), folder, reference, self.allow_pickle)
        if files.is_recipe(model):
            return self._open_recipe(model)
        folder = references.resolve(model, self.cache, self.progress, self.allow_pickle)
        return Checkpoint.open(folder, reference, self.allow_pickle)

    def folder(self, reference: str) -> Path:
        """The folder of a model that is named for its tokenizer alone."""
        model, _ = references.split(reference)
        if files.is_recipe(model):
            return self._open_recipe(model).tokenizer_folder
        return references.resolve(model, self.cache, self.progress, self.allow_pickle)

    def identify(self, recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> str:
        """The recipe_id; reads every byte of the inputs once."""
        return recipe_id(recipe, self.contents(recipe, inputs))

    def contents(self, recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> dict[str, str]:
        """reference → content_sha256, for all that a recipe names; with `tokenizer:` before it, of its tokenizer.

        Tokenizers are in it where the recipe makes a new one of them: they then decide which row goes where.
        """
        found = {reference: checkpoint.content_sha256() for reference, checkpoint in inputs.items()}
        if recipe.vocabulary is not None or recipe.chat_template is not None:
            found |= {TOKENIZER_OF + name: tokenizer_sha256(self.open(name).tokenizer_folder) for name in inputs}
        source = recipe.tokenizer_model
        if source is not None and source not in found:
            found[source] = tokenizer_sha256(self.folder(source))
        return found

    def _open_recipe(self, reference: str) -> Checkpoint:
        if reference in self._within:
            chain = " → ".join((*self._within[self._within.index(reference) :], reference))
            raise RecipeError(reference, f"the recipe is made of itself: {chain}", next="Break the circle")
        if len(self._within) == MAX_NESTED:
            raise RecipeError(reference, f"more than {MAX_NESTED} recipes in one another", next="Merge some beforehand")
        within = Opener(self.cache, self.progress, self.allow_pickle, (*self._within, reference), self._opened)
        recipe = files.load_reference(reference)
        check(recipe, specs(), f"{reference}: ")
        inputs = within.inputs(recipe)
        name = within.identify(recipe, inputs)
        folder = self.cache / "merged" / _folder_name(name, inputs[donor_of(recipe)])
        if not (folder / CONFIG).is_file():
            if self.progress:
                self.progress(f"merging {reference}", 0.0)
            try:
                _write(recipe, inputs, folder)
            except RecipeError as error:
                raise RecipeError(f"{reference}: {error.where}", error.what, error.allowed, error.next) from None
            except CandidateError as error:
                raise RecipeError(reference, error.reason, next="Mend this recipe") from error
            if self.progress:
                self.progress(f"merging {reference}", 1.0)
        return Overlay(Checkpoint.open(folder, reference), reference, lambda: name, {})


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


def _write(recipe: Recipe, inputs: Mapping[str, Checkpoint], folder: Path) -> None:
    try:
        write_checkpoint(recipe, inputs, folder, donor_of(recipe))
    except CheckpointError:
        if not (folder / CONFIG).is_file():  # another process may have been faster
            raise
