"""Sizes of a search's models, from their configs alone: no weights are fetched or read.

Indices and files tell how many bytes are stored where they exist; otherwise the config's `dtype` does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evosearch.checkpoints import pickles, references
from evosearch.checkpoints.adapters.adapter_config import AdapterConfig, read_config
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.references import ADAPTER_WEIGHTS, default_cache
from evosearch.checkpoints.task_vector_file import TASK_VECTOR, is_task_vector
from evosearch.checkpoints.tensor_files import INDEX
from evosearch.execution.loaders import register_schemes
from evosearch.materialize.plan import donor_of
from evosearch.preflight.model_size import FLOAT32, ModelSize, itemsize, linear, residual_writers, size_of
from evosearch.recipe import files
from evosearch.recipe.blocks import blocks
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Watcher
from evosearch.search.space.routes import parse
from evosearch.spec.spec import SearchSpec
from evosearch.untrusted import present


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models of a search.

    Attributes:
        output: A candidate; of a search over routes, the longest.
        live: Parameters of the resident model. For routes: all models' layers, and for each hop its own copy of the
            tensors that write to the residual stream.
        folder: Folder with the output's config.json and tokenizer.
        stored: Model or adapter → bytes of its files.
        held: Model, or model+adapter → bytes that a worker keeps; weights changed by an adapter are in float32.
        read: Bytes that a merge reads: all of its models; of a route, the copied tensors.
    """

    output: ModelSize
    live: int
    folder: Path
    stored: Mapping[str, int]
    held: Mapping[str, int]
    read: int


def sizes_of(spec: SearchSpec, watcher: Watcher) -> Sizes:
    """Sizes of a spec's models. Fetches their configs and tokenizers, but no weights.

    Raises:
        CheckpointError: A model cannot be fetched, or transformers rejects its config.
        RecipeError: The recipe is invalid.
    """
    register_schemes()
    found, example = _Found(watcher, spec.recipes), spec.frame
    also = (spec.baselines.base_model, *(spec.baselines.models or ()))
    for reference in dict.fromkeys((donor_of(example), *example.references(), *filter(None, also))):
        found.add(reference)
    folder = found.folders[donor_of(example)]
    size = size_of(folder)
    if spec.is_route:
        hole = parse(spec.template, spec.where)
        longest = hole.max_hops or 2 * size.layers
        copied = longest * residual_writers(folder) // size.layers  # a route's own copies; everything else is shared
        shared = sum(
            size_of(home).parameters - residual_writers(home) for home in map(found.folders.__getitem__, hole.models)
        )
        made = size.with_layers(longest)
        return Sizes(made, shared + copied, folder, found.stored, found.held, copied * itemsize(folder))
    read = sum(found.total[reference] for reference in example.references())
    made = size.with_layers(_depth(example, size.layers))
    return Sizes(made, made.parameters, folder, found.stored, found.held, read)


class _Found:
    """Sizes collected reference by reference."""

    def __init__(self, watcher: Watcher, recipes: Mapping[str, Mapping[str, Any]]) -> None:
        self._watcher, self._recipes = watcher, recipes
        self.folders: dict[str, Path] = {}
        self.stored: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.total: dict[str, int] = {}  # reference → bytes of all its tensors

    def add(self, reference: str) -> None:
        model, adapter = references.split(reference)
        folder = self._model(model)
        self.folders[reference] = folder
        if adapter is None:
            return
        home = references.resolve_adapter_settings(adapter, default_cache(), self._watcher.preparing)
        if is_task_vector(home):
            self.stored[adapter] = _files(home, (TASK_VECTOR,))
            self.held[reference] = self.stored[adapter]  # base + vector, in the vector's type
            self.total[reference] = max(self.total[model], self.stored[adapter])
            return
        config = read_config(home)
        shapes = [tuple(weight.shape) for module, weight in linear(folder) if config.matches(module)]
        self.stored[adapter] = _files(home, (ADAPTER_WEIGHTS, pickles.ADAPTER)) or _lora_bytes(config, shapes)
        changed = sum(map(math.prod, shapes))
        self.held[reference] = FLOAT32 * changed
        self.total[reference] = self.total[model] + (FLOAT32 - itemsize(folder)) * changed

    def _model(self, model: str) -> Path:
        """The folder with a model's config; for a nested recipe, which is yet to be merged, its donor's."""
        if model in self.folders:
            return self.folders[model]
        if files.is_recipe(model):
            inner = files.load_reference(model, self._recipes)
            for reference in (donor_of(inner), *inner.references()):
                if reference not in self.folders:
                    self.add(reference)
            self.folders[model] = folder = self.folders[donor_of(inner)]
            size = size_of(folder)
            size = size.with_layers(len(inner.routing.hops) if inner.routing else _depth(inner, size.layers))
            self.stored[model] = size.parameters * getattr(torch, inner.output_dtype).itemsize
        else:
            folder = references.resolve_settings(model, default_cache(), self._watcher.preparing)
            self.folders[model] = folder
            self.stored[model] = _listed(folder) or size_of(folder).parameters * itemsize(folder)
        self.held[model] = self.total[model] = self.stored[model]
        return folder


def _depth(recipe: Recipe, layers_of_model: int) -> int:
    """Number of layers of a merge; slices are stacked."""
    runs = [block.entries[0].layers for block in blocks(recipe)]
    return sum(layers_of_model if layers is None else layers[1] - layers[0] for layers in runs)


def _listed(folder: Path) -> int:
    """Bytes of a model's weights, from its index or its files; 0 if there are neither."""
    for name in (INDEX, pickles.INDEX):
        if present(folder / name):
            metadata = read_json(folder / name).get("metadata")
            total = metadata.get("total_size") if isinstance(metadata, dict) else None
            return int(total) if isinstance(total, int | float) and total > 0 else 0
    return _files(folder, ("*.safetensors",)) or _files(folder, pickles.PATTERNS)


def _files(folder: Path, patterns: tuple[str, ...]) -> int:
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern))


def _lora_bytes(config: AdapterConfig, shapes: list[tuple[int, ...]]) -> int:
    """Bytes of A and B in float32."""
    return FLOAT32 * sum(config.rank * (rows + columns) for rows, columns in shapes)
