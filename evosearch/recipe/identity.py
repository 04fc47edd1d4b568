"""Names that follow content: the same recipe of the same weights has the same id wherever its files lie."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from evosearch.recipe.schema import NO_EFFECT, Recipe, Slice
from evosearch.recipe.tokens import Tokenizer

TOKENIZER_OF = "tokenizer:"  # before a reference: what its tokenizer's files are
VERSION = 1  # of the canonical form; a change makes other ids


def canonical(recipe: Recipe, inputs: Mapping[str, str]) -> str:
    """The recipe as canonical JSON.

    Args:
        inputs: reference → content_sha256, for every model the recipe names; where it makes a vocabulary or a chat
            template of theirs, `tokenizer:` + reference → the hash of the tokenizer's files, too.
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
    # What a recipe does not use leaves no trace: the ids of recipes without slices or tokens stay as they were.
    if recipe.slices:
        data["slices"] = [_slice(part, inputs) for part in recipe.slices]
    if recipe.modules:
        data["modules"] = {
            name: {
                "models": [{"model": inputs[m.model], "parameters": _plain(m.parameters)} for m in module.models],
                "slices": [_slice(part, inputs) for part in module.slices],
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
    if recipe.routing is not None:
        data["routing"] = [[inputs[hop.model], hop.layer, float(hop.scale)] for hop in recipe.routing.hops]
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def recipe_id(recipe: Recipe, inputs: Mapping[str, str]) -> str:
    """sha256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(recipe, inputs).encode()).hexdigest()


def digest(data: Any) -> str:
    """sha256 (hex) of any plain data, as sorted JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _slice(part: Slice, inputs: Mapping[str, str]) -> dict[str, Any]:
    return {
        "sources": [
            {
                "model": inputs[source.model],
                "layers": list(source.layer_range),
                "parameters": _plain(source.parameters),
            }
            for source in part.sources
        ],
        "base_model": inputs[part.base_model] if part.base_model else None,
        "parameters": _plain(part.parameters),
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
    """Numbers as floats, so that `1` and `1.0` are one value; keys without effect dropped."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items() if key not in NO_EFFECT}
    if isinstance(node, list | tuple):
        return [_plain(item) for item in node]
    return float(node) if isinstance(node, int) and not isinstance(node, bool) else node
