"""Content-based identity of recipes: equal recipes of equal weights have equal ids, wherever the files are."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from evosearch.recipe.schema import NO_EFFECT, Recipe, Slice
from evosearch.recipe.tokens import Tokenizer

TOKENIZER_OF = "tokenizer:"  # prefix of a reference: the hash of its tokenizer's files
VERSION = 1  # version of the canonical form; changing it changes every id


def canonical(recipe: Recipe, inputs: Mapping[str, str]) -> str:
    """Return the recipe as canonical JSON.

    Args:
        recipe: The recipe.
        inputs: Reference → content_sha256, for every model that the recipe names. If the recipe sets a vocabulary or a
            chat template, also `tokenizer:` + reference → hash of the tokenizer's files; if it has a sample, also its
            key → hash of the sample's tokens.
    """
    data: dict[str, Any] = {
        "version": VERSION,
        "merge_method": recipe.merge_method,
        "base_model": inputs[recipe.base_model] if recipe.base_model else None,
        "models": [{"model": inputs[m.model], "parameters": _plain(m.parameters)} for m in recipe.models],
        "parameters": _plain(recipe.parameters),
        "dtype": recipe.dtype,
        "out_dtype": recipe.output_dtype,
        "seed": recipe.seed,
    }
    # Features that a recipe does not use are left out, so that new features do not change existing ids.
    if recipe.slices:
        data["slices"] = [_slice(each, inputs) for each in recipe.slices]
    if recipe.modules:
        data["modules"] = {
            name: {
                "models": [{"model": inputs[m.model], "parameters": _plain(m.parameters)} for m in module.models],
                "slices": [_slice(each, inputs) for each in module.slices],
                "parameters": _plain(module.parameters),
            }
            for name, module in recipe.modules.items()
        }
    if recipe.vocabulary is not None:
        data["tokenizer"] = _tokens(recipe.vocabulary, inputs)
    if recipe.chat_template is not None:
        data["chat_template"] = recipe.chat_template
    if recipe.vocabulary is not None or recipe.chat_template is not None:
        data["tokenizers"] = [[inputs[name], inputs[TOKENIZER_OF + name]] for name in recipe.references()]
    if recipe.sample is not None:
        data["sample"] = inputs[recipe.sample.key]
    if recipe.routing is not None:
        data["routing"] = [[inputs[hop.model], hop.layer, float(hop.scale)] for hop in recipe.routing.hops]
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def recipe_id(recipe: Recipe, inputs: Mapping[str, str]) -> str:
    """Return the sha256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(recipe, inputs).encode()).hexdigest()


def digest(data: Any) -> str:
    """Return the sha256 (hex) of plain data, serialized as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _slice(run: Slice, inputs: Mapping[str, str]) -> dict[str, Any]:
    return {
        "sources": [
            {
                "model": inputs[source.model],
                "layers": list(source.layer_range),
                "parameters": _plain(source.parameters),
            }
            for source in run.sources
        ],
        "base_model": inputs[run.base_model] if run.base_model else None,
        "parameters": _plain(run.parameters),
    }


def _tokens(tokenizer: Tokenizer, inputs: Mapping[str, str]) -> dict[str, Any]:
    data = tokenizer.model_dump(mode="json")
    data["source"] = inputs.get(tokenizer.source, tokenizer.source)
    for token in data["tokens"].values():
        source = token["source"]
        if isinstance(source, str):
            token["source"] = inputs[source]
        elif source is not None and "model" in source:
            source["model"] = inputs[source["model"]]
    return data


def _plain(node: Any) -> Any:
    """Convert numbers to floats, so that `1` and `1.0` are equal, and drop keys without effect."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items() if key not in NO_EFFECT}
    if isinstance(node, list | tuple):
        return [_plain(item) for item in node]
    return float(node) if isinstance(node, int) and not isinstance(node, bool) else node
