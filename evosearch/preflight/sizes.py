"""How large the models of a search are, from their configs alone: no weights are fetched or read.

transformers builds each model without memory for its numbers, which tells their count; indices and files tell how they
are stored where they are there, and the config's `dtype` where they are not.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from evosearch.checkpoints import pickles, references
from evosearch.checkpoints.adapters.config import AdapterConfig, read_config
from evosearch.checkpoints.families.registry import family_of
from evosearch.checkpoints.files import CONFIG, INDEX, read_json
from evosearch.checkpoints.references import ADAPTER_WEIGHTS, default_cache
from evosearch.errors import CheckpointError
from evosearch.execution.worker import register_schemes
from evosearch.materialize.forward import settings
from evosearch.materialize.plan import donor_of
from evosearch.recipe import files
from evosearch.recipe.blocks import blocks
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Watcher
from evosearch.search.space.routes import is_route, parse
from evosearch.search.space.template import frame
from evosearch.spec.spec import SearchSpec

FLOAT32 = 4  # bytes
_EXPERTS = re.compile(r"\.experts\.")


@dataclass(frozen=True)
class ModelSize:
    """Counts of numbers in a model.

    Attributes:
        parameters: all of them; tied ones once.
        body: those of its layers that one token is multiplied with: of experts, as many as a token is sent to.
        head: those of the output head, tied or not.
        width: heads × size of a head.
        cached: keys and values kept of a token, in all layers.
    """

    parameters: int
    body: int
    head: int
    layers: int
    width: int
    cached: int
    vocabulary: int

    @property
    def multiplied(self) -> int:
        """What a token is multiplied with; embeddings are looked up."""
        return self.body + self.head

    def with_layers(self, layers: int) -> "ModelSize":
        """The same model with more layers, or with fewer."""
        more = (layers - self.layers) / self.layers
        grown = round(more * self.body)
        return replace(
            self,
            parameters=self.parameters + grown,
            body=self.body + grown,
            layers=layers,
            cached=round(self.cached * layers / self.layers),
        )


@dataclass(frozen=True)
class Sizes:
    """The models of a search.

    Attributes:
        output: a candidate; of a search over routes the longest.
        live: parameters of the model that candidates are written into; for routes, those of every model's layers, and
            of each hop what writes to the residual stream.
        folder: with the output's config.json and tokenizer.
        stored: model or adapter → bytes of its files.
        held: model, or model+adapter → bytes of what a worker keeps of it: what an adapter changes is made in float32.
        read: bytes of all models that a merge is made of, each whole; of a route what it copies.
    """

    output: ModelSize
    live: int
    folder: Path
    stored: Mapping[str, int]
    held: Mapping[str, int]
    read: int


def sizes_of(spec: SearchSpec, watcher: Watcher) -> Sizes:
    """The sizes of a spec's models. Fetches their configs and tokenizers, and no weights.

    Raises:
        CheckpointError: a model cannot be had, or transformers does not take its config.
        RecipeError: the recipe is not well-formed.
    """
    register_schemes()
    found, example = _Found(watcher, spec.recipes), frame(spec.template, spec.where)
    also = (spec.baselines.base_model, *(spec.baselines.models or ()))
    for reference in dict.fromkeys((donor_of(example), *example.references(), *filter(None, also))):
        found.add(reference)
    folder = found.folders[donor_of(example)]
    size = size_of(folder)
    if is_route(spec.template):
        hole = parse(spec.template, spec.where)
        longest = hole.max_hops or 2 * size.layers
        copied = longest * _writers(folder) // size.layers  # what a route divides; the rest is shared
        shared = sum(size_of(home).parameters - _writers(home) for home in map(found.folders.__getitem__, hole.models))
        made = size.with_layers(longest)
        return Sizes(made, shared + copied, folder, found.stored, found.held, copied * itemsize(folder))
    read = sum(found.whole[reference] for reference in example.references())
    made = size.with_layers(_depth(example, size.layers))
    return Sizes(made, made.parameters, folder, found.stored, found.held, read)


class _Found:
    """References as they are looked at, one after another."""

    def __init__(self, watcher: Watcher, recipes: Mapping[str, Mapping[str, Any]]) -> None:
        self._watcher, self._recipes = watcher, recipes
        self.folders: dict[str, Path] = {}
        self.stored: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.whole: dict[str, int] = {}  # reference → bytes of all its tensors

    def add(self, reference: str) -> None:
        model, adapter = references.split(reference)
        folder = self._model(model)
        self.folders[reference] = folder
        if adapter is None:
            return
        home = references.resolve_adapter_settings(adapter, default_cache(), self._watcher.preparing)
        config = read_config(home)
        shapes = [tuple(weight.shape) for module, weight in linear(folder) if config.matches(module)]
        self.stored[adapter] = _files(home, (ADAPTER_WEIGHTS, pickles.ADAPTER)) or _lora_bytes(config, shapes)
        changed = sum(map(math.prod, shapes))
        self.held[reference] = FLOAT32 * changed
        self.whole[reference] = self.whole[model] + (FLOAT32 - itemsize(folder)) * changed

    def _model(self, model: str) -> Path:
        """The folder with a model's config; of a recipe, which will be merged into the cache, its donor's."""
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
        self.held[model] = self.whole[model] = self.stored[model]
        return folder


def _depth(recipe: Recipe, whole: int) -> int:
    """How many layers a merge has: slices stack theirs."""
    runs = [block.entries[0].layers for block in blocks(recipe)]
    return sum(whole if layers is None else layers[1] - layers[0] for layers in runs)


def size_of(folder: Path) -> ModelSize:
    """The size of the model of a config.json.

    Raises:
        CheckpointError: there is none, or transformers does not take it.
    """
    model = _built(folder)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    parameters = sum(weight.numel() for weight in model.parameters())
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = embeddings is head
    body = parameters - embeddings.numel() - (0 if tied else head.numel())
    idle = sum(weight.numel() for name, weight in model.named_parameters() if _EXPERTS.search(name))
    return ModelSize(
        parameters=parameters,
        body=body - round(idle * (1 - _share(config))),
        head=head.numel(),
        layers=config.num_hidden_layers,
        width=heads * size,
        cached=2 * groups * size * config.num_hidden_layers,
        vocabulary=head.shape[0],
    )


def _share(config: Any) -> float:
    """The part of a layer's experts that a token is sent to."""
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    return min(1.0, getattr(config, "num_experts_per_tok", count) / count)


def linear(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Module → its weight matrix, for every module that has one."""
    for name, weight in _built(folder).named_parameters():
        if weight.ndim == 2 and name.endswith(".weight"):
            yield name.removesuffix(".weight"), weight


def _writers(folder: Path) -> int:
    """The numbers of the tensors that write to the residual stream."""
    config = read_json(folder / CONFIG)
    family = family_of(config, f"{folder}/{CONFIG}")
    writing = (tensor.name for tensor in family.shape(config).tensors if tensor.writes_residual)
    parameters = dict(_built(folder).named_parameters())
    return sum(parameters[name].numel() for name in {family.placement(name, config).parameter for name in writing})


def itemsize(folder: Path) -> int:
    """Bytes of a number, as the config says they are stored; float32's where it does not."""
    config = read_json(folder / CONFIG)
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return int(getattr(getattr(torch, named, torch.float32), "itemsize", FLOAT32))


@cache
def _built(folder: Path) -> Any:
    """The transformers model, its parameters without memory."""
    where = f"{folder}/{CONFIG}"
    made = settings(read_json(folder / CONFIG), where)
    kind = getattr(transformers, made.architectures[0])
    try:
        with torch.device("meta"):
            return kind(made)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(where, f"transformers cannot build this model: {error}".splitlines()[0]) from error


def _listed(folder: Path) -> int:
    """Bytes of a model's weights by its index, or by the files that are there; 0 where neither is."""
    for name in (INDEX, pickles.INDEX):
        if (folder / name).is_file():
            total = read_json(folder / name).get("metadata", {}).get("total_size", 0)
            return int(total) if isinstance(total, int | float) else 0
    return _files(folder, ("*.safetensors",)) or _files(folder, pickles.PATTERNS)


def _files(folder: Path, patterns: tuple[str, ...]) -> int:
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern))


def _lora_bytes(config: AdapterConfig, shapes: list[tuple[int, ...]]) -> int:
    """Bytes of A and B in float32."""
    return FLOAT32 * sum(config.rank * (rows + columns) for rows, columns in shapes)
