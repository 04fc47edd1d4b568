"""Preparation of a recipe's models: fetch, apply adapters, merge nested recipes, convert to one vocabulary.

A nested recipe is merged once, into the cache. The folder's name is derived from its recipe_id.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from evosearch.checkpoints import references
from evosearch.checkpoints.adapters.adapted_model import apply_adapter
from evosearch.checkpoints.cache.drafts import sweep
from evosearch.checkpoints.cache.hashes import Hashes
from evosearch.checkpoints.cache.layout import MERGED
from evosearch.checkpoints.cache.locks import LOCKS, locked
from evosearch.checkpoints.cache.uses import hold
from evosearch.checkpoints.model_files import GENERATION, listed, read_bytes
from evosearch.checkpoints.overlay import Overlay
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.references import Progress
from evosearch.checkpoints.sidecar import files_of
from evosearch.checkpoints.task_vector_file import is_task_vector
from evosearch.checkpoints.task_vectors import apply_task_vector
from evosearch.checkpoints.writer import TOKENIZER_FILES
from evosearch.errors import CandidateError, InputError, RecipeError, in_one
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.materialize.random_vectors import adapter_placebo, dense_placebo
from evosearch.materialize.vocabulary import in_one_vocabulary
from evosearch.merging.registry import specs
from evosearch.recipe import files, placebo_reference
from evosearch.recipe.checks import check
from evosearch.recipe.identity import TOKENIZER_OF, recipe_id
from evosearch.recipe.sample import Sample
from evosearch.recipe.schema import Recipe
from evosearch.untrusted import present

MAX_NESTED = 32  # depth of nested recipes


class Samples(Protocol):
    """Samples of texts, and the statistics of models over them."""

    def digest(self, sample: Sample, donor: Checkpoint) -> str:
        """Return the sha256 (hex) of a sample's tokens, by the donor's tokenizer.

        Raises:
            InputError: The sample cannot be read.
        """
        ...

    def attach(self, sample: Sample, checkpoints: Mapping[str, Checkpoint], recipe: Recipe | None = None) -> None:
        """Give every checkpoint its statistics over a sample. Nothing is read or computed before they are used.

        Args:
            sample: The sample.
            checkpoints: Reference → checkpoint in the output's vocabulary, the donor first.
            recipe: The recipe, whose merge the statistics of a sequential method depend on.
        """
        ...


@dataclass(frozen=True)
class Opener:
    """Resolver of references to checkpoints.

    Attributes:
        cache: Folder for fetched, trained and merged models.
        progress: Called with a description and the completed fraction of each step.
        allow_pickle: Read pickled weights of models that have no others.
        recipes: Reference → recipe as plain data, for nested recipes whose files are not to be read.
        near: Reference → folder, for models and adapters with a copy on this node.
        samples: Reads samples, and computes statistics of models over them.
    """

    cache: Path
    progress: Progress | None = None
    allow_pickle: bool = False
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    near: Mapping[str, Path] = field(default_factory=dict)
    samples: Samples | None = field(default=None, repr=False, compare=False)
    _within: tuple[str, ...] = field(default=(), repr=False)  # recipes being opened, outermost first
    _opened: dict[str, Checkpoint] = field(default_factory=dict, repr=False, compare=False)
    _read: dict[str, Recipe] = field(default_factory=dict, repr=False, compare=False)  # nested recipes by reference

    def inputs(self, recipe: Recipe, also: Sequence[str] = ()) -> dict[str, Checkpoint]:
        """Open every model of a recipe, converted to the output's vocabulary.

        Args:
            recipe: The recipe.
            also: Further models that the recipe does not name.

        Returns:
            Reference → checkpoint, the donor first.

        Raises:
            CheckpointError: A model is missing, damaged, or cannot be converted to the vocabulary.
            RecipeError: A nested recipe is invalid, or contains itself.
        """
        found = in_one_vocabulary(recipe, self.as_they_are(recipe, also), self.cache, self.folder)
        if recipe.sample is not None:
            assert self.samples is not None, "an opener without samples"
            self.samples.attach(recipe.sample, found, recipe)
        return found

    def as_they_are(self, recipe: Recipe, also: Sequence[str] = ()) -> dict[str, Checkpoint]:
        """Open every model like `inputs`, each in its own vocabulary; nested recipes are merged."""
        named = dict.fromkeys((donor_of(recipe), *recipe.references(), *also))
        return {reference: self.open(reference) for reference in named}

    def put(self, checkpoint: Checkpoint) -> None:
        """Use this checkpoint for its reference from now on: the same model in another place."""
        self._opened[checkpoint.reference] = checkpoint

    def open(self, reference: str) -> Checkpoint:
        """Open one model (a checkpoint, `model+adapter`, a recipe or a placebo), or return it if it is already open."""
        if reference not in self._opened:
            self._opened[reference] = self._open(reference)
        return self._opened[reference]

    def recipe(self, reference: str) -> Recipe:
        """Return the recipe that a reference names, as it was when it was opened.

        Raises:
            RecipeError: See `files.load_reference`.
        """
        return self._read.get(reference) or files.load_reference(reference, self.recipes)

    @property
    def nested(self) -> dict[str, dict[str, Any]]:
        """Return all nested recipes that were opened, as plain data by reference: the `recipes` of another opener."""
        return {reference: recipe.to_dict() for reference, recipe in self._read.items()}

    def _open(self, reference: str) -> Checkpoint:
        placebo = placebo_reference.parse(reference)
        if placebo is not None:
            return self._open_placebo(placebo)
        model, adapter = references.split(reference, self.recipes)
        hashes = Hashes(self.cache)
        if adapter is not None:
            return self._adapted(self.open(model), self._adapter(adapter), reference, hashes)
        if files.is_recipe(model):
            return self._open_recipe(model)
        return Checkpoint.open(self._folder(model), reference, self.allow_pickle, hashes)

    def _adapted(self, base: Checkpoint, folder: Path, reference: str, hashes: Hashes) -> Checkpoint:
        if is_task_vector(folder):
            return apply_task_vector(base, folder, reference, hashes)
        return apply_adapter(base, folder, reference, self.allow_pickle, hashes)

    def _open_placebo(self, placebo: placebo_reference.PlaceboReference) -> Checkpoint:
        base, model = self.open(placebo.base), self.open(placebo.model)
        under, adapter = references.split(placebo.model, self.recipes)
        if adapter is None or under != placebo.base:
            return dense_placebo(base, model, str(placebo), placebo.seed)
        folder = self._adapter(adapter)
        if is_task_vector(folder):
            return dense_placebo(base, model, str(placebo), placebo.seed)
        return adapter_placebo(base, model, folder, str(placebo), placebo.seed, self.allow_pickle)

    def _adapter(self, adapter: str) -> Path:
        return self.near.get(adapter) or references.resolve_adapter(
            adapter, self.cache, self.progress, self.allow_pickle
        )

    def _folder(self, model: str) -> Path:
        return self.near.get(model) or references.resolve(model, self.cache, self.progress, self.allow_pickle)

    def folder(self, reference: str) -> Path:
        """Return the folder of a model that is only used for its tokenizer."""
        placebo = placebo_reference.parse(reference)
        if placebo is not None:
            return self.folder(placebo.model)
        model, _ = references.split(reference, self.recipes)
        if files.is_recipe(model):
            return self._open_recipe(model).tokenizer_folder
        return self._folder(model)

    def identify(self, recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> str:
        """Return the recipe_id. Reads every byte of the inputs once."""
        return recipe_id(recipe, self.contents(recipe, inputs))

    def contents(self, recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> dict[str, str]:
        """Return reference → content_sha256 of every model, and `tokenizer:` + reference → hash of its tokenizer.

        Tokenizers are included if the recipe sets a vocabulary or chat template, since they then affect the weights.
        So is the sample that statistics are computed over: its key → hash of its tokens.
        """
        found = {reference: checkpoint.content_sha256() for reference, checkpoint in inputs.items()}
        if recipe.vocabulary is not None or recipe.chat_template is not None:
            found |= {TOKENIZER_OF + name: tokenizer_sha256(self.open(name).tokenizer_folder) for name in inputs}
        source = recipe.tokenizer_model
        if source is not None and source not in found:
            found[source] = tokenizer_sha256(self.folder(source))
        if recipe.sample is not None:
            assert self.samples is not None, "an opener without samples"
            found[recipe.sample.key] = self.samples.digest(recipe.sample, inputs[donor_of(recipe)])
        return found

    def files(self, recipe: Recipe, also: Sequence[str] = ()) -> dict[str, dict[str, str]]:
        """Return reference → file → sha256 of every model's original config and tokenizer files."""
        return {reference: files_of(checkpoint) for reference, checkpoint in self.as_they_are(recipe, also).items()}

    def _open_recipe(self, reference: str) -> Checkpoint:
        if reference in self._within:
            chain = " → ".join((*self._within[self._within.index(reference) :], reference))
            raise RecipeError(reference, f"the recipe contains itself: {chain}", next="Break the cycle")
        if len(self._within) == MAX_NESTED:
            raise RecipeError(
                reference, f"recipes are nested more than {MAX_NESTED} deep", next="Merge some of them first"
            )
        within = replace(self, _within=(*self._within, reference))
        recipe = self.recipe(reference)
        check(recipe, specs(), f"{reference}: ")
        inputs = within.inputs(recipe)
        name = within.identify(recipe, inputs)
        folder = self.cache / MERGED / _folder_name(name, inputs[donor_of(recipe)])
        hold(self.cache, MERGED, folder.name, reference)
        if not (folder / CONFIG).is_file():
            lock = self.cache / LOCKS / f"merge-{folder.name}"
            with locked(lock, lambda: self._report(f"waiting for another process to merge {reference}", 0.0)):
                self._merge(recipe, reference, inputs, folder)
        self._read[reference] = recipe
        return Overlay(Checkpoint.open(folder, reference), reference, lambda: name, {})

    def _merge(self, recipe: Recipe, reference: str, inputs: Mapping[str, Checkpoint], folder: Path) -> None:
        """Write a nested recipe's model, unless another process wrote it in the meantime."""
        if (folder / CONFIG).is_file():
            return
        sweep(self.cache)
        self._report(f"merging {reference}", 0.0)
        try:
            write_checkpoint(recipe, inputs, folder, donor_of(recipe))
        except InputError as error:
            raise in_one(reference, [_within(reference, problem) for problem in error.problems]) from None
        except CandidateError as error:
            raise RecipeError(reference, error.reason, next="Fix this recipe") from error
        self._report(f"merging {reference}", 1.0)

    def _report(self, what: str, fraction: float) -> None:
        if self.progress:
            self.progress(what, fraction)


def _within(reference: str, error: InputError) -> InputError:
    """An error of a nested recipe, located in its file; errors about another file keep that."""
    if not isinstance(error, RecipeError) and re.match(r"recipe\b", error.where) is None:
        return error
    return type(error)(f"{reference}: {error.where}", error.what, error.allowed, error.next)


def tokenizer_sha256(folder: Path) -> str:
    """Return the sha256 (hex) over a folder's tokenizer and chat template files, sorted by name."""
    digest = hashlib.sha256()
    for path in sorted(listed(folder, TOKENIZER_FILES).values()):
        own = hashlib.sha256(read_bytes(path, folder)).hexdigest()
        digest.update(f"{path.relative_to(folder)}\n{own}\n".encode())
    return digest.hexdigest()


def _folder_name(recipe_id: str, donor: Checkpoint) -> str:
    """Hash the recipe_id, which covers the weights, together with the donor's config and tokenizer."""
    settings = {
        key: value for key, value in donor.config.items() if key not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.sha256(f"{recipe_id}\n{json.dumps(settings, sort_keys=True)}\n".encode())
    digest.update(tokenizer_sha256(donor.tokenizer_folder).encode())
    generation = donor.folder / GENERATION
    digest.update(read_bytes(generation, donor.folder) if present(generation) else b"")
    return digest.hexdigest()
