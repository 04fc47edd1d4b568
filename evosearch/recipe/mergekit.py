"""Recipes to and from mergekit's YAML.

A recipe is nearly mergekit's own format. What differs is made explicit here, so that mergekit computes our weights: it
places the final norm and the head at the first layer of a gradient, where we place them at the last, and it averages an
unlisted base into a linear merge. Written files depend on neither.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.recipe.blocks import DEFAULT, Block, Entry, Scope, blocks
from evosearch.recipe.files import is_recipe
from evosearch.recipe.mergekit_route import in_slices
from evosearch.recipe.other_formats import refuse_other_formats
from evosearch.recipe.parameters import Setting, evaluate, leaves
from evosearch.recipe.schema import NO_EFFECT, Recipe
from evosearch.recipe.shapes import ModelShape, Place, Scalar, TensorSpec

# Method → its parameters that mergekit has; of the others only the value named here is what mergekit does.
PARAMETERS = {
    "linear": ("weight", "normalize"),
    "slerp": ("t",),
    "task_arithmetic": ("weight", "normalize", "lambda"),
    "ties": ("weight", "density", "normalize", "lambda"),
    "dare_linear": ("weight", "density", "normalize", "rescale", "lambda"),
    "dare_ties": ("weight", "density", "normalize", "rescale", "lambda"),
    "passthrough": ("scale",),
}
RANDOM = ("dare_linear", "dare_ties")
NO_BASE = ("linear", "passthrough", "karcher")  # where a base that takes part is one of the models, as any other
IMPLIED = {"slerp": {"norm": "keep"}, "ties": {"sign_method": "magnitude", "trim_scope": "tensor"}}
INSTEAD = "Export the merged checkpoint instead"


def to_mergekit(
    recipe: Recipe, shape: ModelShape, folders: Mapping[str, str] | None = None, adapted: Collection[str] = ()
) -> str:
    """The recipe as a file that mergekit merges to the same weights.

    Gradients become one number a layer behind explicit entries for embeddings, final norm and head. References stay as
    the recipe has them.

    Args:
        shape: the layout of the output.
        folders: reference → folder, for references that mergekit cannot resolve (`zoo:` and other schemes). Without
            an entry they are written as they are, and named in the header.
        adapted: the references that are a model and an adapter.

    Raises:
        RecipeError: mergekit cannot express it; says what, and what to do instead.
    """
    if recipe.routing is None:
        _check_expressible(recipe, shape)
    _check_biases(shape)
    names = {reference: (folders or {}).get(reference, reference) for reference in recipe.references()}
    for reference, name in names.items():
        _check_reference(reference, name, reference in adapted)
    if recipe.routing is not None:
        data = in_slices(recipe.routing, shape, names, INSTEAD)
        data |= {"dtype": recipe.dtype, "out_dtype": recipe.output_dtype}
        return _header(recipe, names, adapted) + documents.dump(data)
    parts, views = blocks(recipe), _views(blocks(recipe), shape)
    data = {"merge_method": recipe.merge_method}
    # Without a base mergekit takes config and tokenizer from whichever model its hashing puts first.
    data["base_model"] = names[recipe.base_model or parts[0].entries[0].model]
    if parts[0].entries[0].layers is None:
        data["models"] = [_entry_of(recipe, entry, names, views[0]) for entry in _listed(recipe, parts[0])]
    else:
        data["slices"] = [_slice(recipe, block, names, view) for block, view in zip(parts, views, strict=True)]
        _check_last_slice(parts[-1], [len(part["sources"]) for part in data["slices"]])
    if shared := _shared(recipe, parts, views):
        data["parameters"] = shared
    data |= {"dtype": recipe.dtype, "out_dtype": recipe.output_dtype}
    data |= _vocabulary(recipe, names)
    return _header(recipe, names, adapted) + documents.dump(data)


def from_mergekit(text: str, where: str) -> Recipe:
    """A recipe from mergekit's YAML.

    Gradients keep our meaning: the final norm and the head are at the last layer. Where mergekit would average an
    unlisted base in, it is listed.

    Args:
        where: the file's name, for errors.

    Raises:
        RecipeError: it is not well-formed, or has keys that are not supported.
    """
    data = documents.parse(text, where, RecipeError)
    refuse_other_formats(data, where, RecipeError)
    data.pop("name", None)  # of a document among several; alone it says nothing
    recipe = _rescaled_as_there(documents.validate(Recipe, data, where, RecipeError), where)
    if recipe.merge_method not in ("linear", "karcher") or not (recipe.models or recipe.modules):
        return recipe
    first = blocks(recipe)[0]
    if first.entries[0].layers is not None or not _leaves_base_out(first):
        return recipe
    if recipe.merge_method == "linear" and not any("weight" in scope for scope in first.shared):
        what = "mergekit averages base_model in, and it has no weight"
        key = documents.join(where, *([first.where] if first.where else []), "models")
        raise RecipeError(key, what, next="List the base in models, or leave base_model out")
    written = recipe.to_dict()
    holder = written["modules"][DEFAULT] if recipe.modules else written
    holder["models"].append({"model": recipe.base_model})
    return documents.validate(Recipe, written, where, RecipeError)


def _rescaled_as_there(recipe: Recipe, where: str) -> Recipe:
    """Mergekit's DARE rescales to the L1 norm, told or not, unless it is told not to."""
    if recipe.merge_method not in RANDOM:
        return recipe
    written = recipe.to_dict()
    holder = written["modules"][DEFAULT] if "rescale" in blocks(recipe)[0].shared[0] and recipe.modules else written
    own = holder.setdefault("parameters", {})
    own["rescale"] = _map_values(own.get("rescale", True), lambda value: "l1" if value is True else value)
    return documents.validate(Recipe, written, where, RecipeError)


def _leaves_base_out(block: Block) -> bool:
    return block.base is not None and all(entry.model != block.base for entry in block.entries)


def _check_expressible(recipe: Recipe, shape: ModelShape) -> None:
    method = recipe.merge_method
    assert method is not None
    if method not in PARAMETERS:
        allowed = f"It has {', '.join(PARAMETERS)}"
        raise RecipeError("recipe.merge_method", f"mergekit has no method that equals '{method}'", allowed, INSTEAD)
    for where, scope in _scopes(recipe):
        for name, setting in scope.items():
            implied = IMPLIED.get(method, {}).get(name)
            if name not in (*PARAMETERS[method], *NO_EFFECT) and setting != implied:
                what = f"mergekit's {method} has no '{name}'" + (f" other than '{implied}'" if implied else "")
                raise RecipeError(documents.join(where, name), what, next=INSTEAD)
    _check_vocabulary(recipe)


def _check_biases(shape: ModelShape) -> None:
    if shape.architecture == "LlamaForCausalLM" and any(name.endswith(".bias") for name in shape.by_name):
        what = "mergekit's Llama has no biases, and would leave these models' out"
        raise RecipeError("recipe.models", what, next=INSTEAD)


def _check_vocabulary(recipe: Recipe) -> None:
    if recipe.vocabulary is None:
        return
    if any(block.entries[0].layers is not None for block in blocks(recipe)):
        what = "mergekit takes missing tokens from the models of one slice alone, where here all models are asked"
        raise RecipeError("recipe.slices", what, next=INSTEAD)
    for text, token in recipe.vocabulary.tokens.items():
        if token.source is None:
            where = f"recipe.tokenizer.tokens.{text}.source"
            raise RecipeError(where, "mergekit needs one where a model lacks the token", next="Name a model, or zero")


def _rescales_by_density(recipe: Recipe) -> bool:
    settings = [scope["rescale"] for _, scope in _scopes(recipe) if "rescale" in scope]
    return not settings or any(value is True for setting in settings for value in leaves(setting))


def _in_mergekit(name: str, setting: Setting) -> Setting:
    """A setting in mergekit's values: where DARE rescales, it does so to the L1 norm."""
    if name != "rescale":
        return setting
    return _map_values(setting, lambda value: True if value == "l1" else value)


def _map_values(setting: Setting, change: Callable[[Scalar], Scalar]) -> Setting:
    if isinstance(setting, Mapping):
        return {**setting, "value": _map_values(setting["value"], change)}
    if isinstance(setting, list | tuple):
        return [_map_values(item, change) for item in setting]
    return change(setting)


def _scopes(recipe: Recipe) -> Iterator[tuple[str, Scope]]:
    for block in blocks(recipe):
        for key, scope in zip(block.keys, block.shared, strict=True):
            yield documents.join("recipe", key), scope
        for entry in block.entries:
            yield documents.join("recipe", entry.where, "parameters"), entry.own


def _check_reference(reference: str, name: str, adapted: bool) -> None:
    if is_recipe(name):
        what = "mergekit takes no recipe for a model"
        raise RecipeError(reference, what, next=f"{INSTEAD}, or merge it and name the folder")
    parts = name.split("+") if adapted else [name]
    if any("+" in part or (part.startswith(("/", "./", "../", "~")) and "@" in part) for part in parts):
        what = f"mergekit would read a part of '{name}' as an adapter or a revision"
        raise RecipeError(reference, what, next="Move the model to a folder without '+' and '@'")


def _check_last_slice(last: Block, counts: list[int]) -> None:
    if counts[-1] > counts[0]:
        what = f"mergekit would take but {counts[0]} of them for final norm and head, as many as the first has"
        raise RecipeError(documents.join("recipe", last.where, "sources"), what, next=INSTEAD)


@dataclass(frozen=True)
class _View:
    """One block's part of the output: layers `first` to `first + length`, and what lies before or after them."""

    shape: ModelShape
    first: int
    length: int
    opens: bool  # it gives the embeddings
    closes: bool  # it gives final norm and head

    def names(self) -> list[str]:
        return [tensor.name for tensor in self.shape.tensors if self._has(tensor)]

    def ends(self) -> list[str]:
        return [name for name in self.names() if self.shape.by_name[name].layer is None]

    def position(self, name: str) -> float:
        layer = self.shape.by_name[name].layer
        if layer is None:
            return 0.0 if self.shape.by_name[name].place is Place.EMBEDDINGS else 1.0
        return (layer - self.first) / (self.length - 1) if self.length > 1 else 1.0

    def per_layer(self, gradient: Any) -> list[Scalar]:
        """One number a layer; mergekit interpolates between them, and at a layer finds the layer's own."""
        return [_at(gradient, "", i / (self.length - 1) if self.length > 1 else 1.0) for i in range(self.length)]

    def _has(self, tensor: TensorSpec) -> bool:
        if tensor.layer is None:
            return self.opens if tensor.place is Place.EMBEDDINGS else self.closes
        return self.first <= tensor.layer < self.first + self.length


def _views(parts: tuple[Block, ...], shape: ModelShape) -> list[_View]:
    found: list[_View] = []
    first = 0
    for index, block in enumerate(parts):
        start, end = block.entries[0].layers or (0, shape.num_layers)
        found.append(_View(shape, first, end - start, index == 0, index == len(parts) - 1))
        first += end - start
    return found


def _listed(recipe: Recipe, block: Block) -> list[Entry]:
    """The models. The base is always among them: where it is not, mergekit adds it last, with parameters."""
    entries = list(block.entries)
    if block.base is not None and _leaves_base_out(block):
        if recipe.merge_method in NO_BASE and recipe.merge_method != "linear":
            what = f"mergekit's {recipe.merge_method} would merge it, where here it gives but config and tokenizer"
            raise RecipeError("recipe.base_model", what, next=INSTEAD)
        own = {"weight": 0.0} if recipe.merge_method == "linear" else {}  # there the base is but config and tokenizer
        entries.insert(0, Entry(block.base, None, own, "base_model"))
    return entries


def _entry_of(recipe: Recipe, entry: Entry, names: Mapping[str, str], view: _View) -> dict[str, Any]:
    settings = _settings(recipe, entry.own, view)
    layers = {"layer_range": list(entry.layers)} if entry.layers is not None else {}
    return {"model": names[entry.model]} | layers | ({"parameters": settings} if settings else {})


def _slice(recipe: Recipe, block: Block, names: Mapping[str, str], view: _View) -> dict[str, Any]:
    entries = list(block.entries)
    needs_base = recipe.merge_method not in NO_BASE and block.base is not None
    if needs_base and _leaves_base_out(block):
        assert block.base is not None
        entries.insert(0, Entry(block.base, block.layers_of_base(), {}, "base_model"))
    data: dict[str, Any] = {"sources": [_entry_of(recipe, entry, names, view) for entry in entries]}
    if block.base is not None and block.base != recipe.base_model:
        data["base_model"] = names[block.base]
    if settings := _settings(recipe, block.shared[0], view):
        data["parameters"] = settings
    return data


def _shared(recipe: Recipe, parts: tuple[Block, ...], views: list[_View]) -> dict[str, Any]:
    """The recipe's own parameters, a module's taken in: narrower ones win, as far as their filters reach."""
    scopes = parts[0].shared[1:] if parts[0].entries[0].layers is not None else parts[0].shared
    merged: dict[str, list[dict[str, Any]]] = {}
    for scope in scopes:
        for name, setting in scope.items():
            if name in PARAMETERS[recipe.merge_method or ""]:
                merged.setdefault(name, []).extend(_conditions(_in_mergekit(name, setting)))
    return {name: _shortest(_explicit(entries, views)) for name, entries in merged.items()}


def _settings(recipe: Recipe, scope: Scope, view: _View) -> dict[str, Any]:
    known = PARAMETERS[recipe.merge_method or ""]
    written = {name: _conditions(_in_mergekit(name, setting)) for name, setting in scope.items() if name in known}
    return {name: _shortest(_explicit(entries, [view])) for name, entries in written.items()}


def _conditions(setting: Setting) -> list[dict[str, Any]]:
    if isinstance(setting, list | tuple) and isinstance(setting[0], Mapping):
        return [dict(entry) for entry in setting]
    return [{"filter": None, "value": setting}]


def _shortest(entries: list[dict[str, Any]]) -> Any:
    lone = len(entries) == 1 and "filter" not in entries[0] and not isinstance(entries[0]["value"], list | tuple)
    return entries[0]["value"] if lone else entries


def _explicit(entries: list[dict[str, Any]], views: list[_View]) -> list[dict[str, Any]]:
    """The same entries with nothing left to a gradient's convention."""
    written: list[dict[str, Any]] = []
    earlier: list[str | None] = []
    for entry in entries:
        written += _explicit_entry(entry["filter"], entry["value"], views, earlier)
        earlier.append(entry["filter"])
    return written


def _explicit_entry(
    pattern: str | None, value: Any, views: list[_View], earlier: list[str | None]
) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        return [_entry(pattern, value)]

    def decided(name: str) -> bool:
        return _matches(pattern, name) and not any(_matches(other, name) for other in earlier)

    if isinstance(value[0], bool | str):  # no numbers to interpolate: rounding of a position must not decide
        named = [(view, name) for view in views for name in view.names()]
    else:
        named = [(view, name) for view in views for name in view.ends()]
    written = [_entry(name, _at(value, name, view.position(name))) for view, name in named if decided(name)]
    if isinstance(value[0], bool | str):
        return written
    one_run = len(views) == 1
    return [*written, _entry(pattern, views[0].per_layer(value) if one_run else list(value))]


def _matches(pattern: str | None, name: str) -> bool:
    return pattern is None or pattern == "*" or pattern in name


def _at(value: Any, name: str, position: float) -> Scalar:
    found = evaluate(value, name, position)
    assert found is not None
    return found


def _entry(pattern: str | None, value: Any) -> dict[str, Any]:
    return {"value": value} if pattern is None else {"filter": pattern, "value": value}


def _vocabulary(recipe: Recipe, names: Mapping[str, str]) -> dict[str, Any]:
    data = recipe.model_dump(
        mode="json", exclude_defaults=True, include={"tokenizer_source", "tokenizer", "chat_template"}
    )
    tokens = data.get("tokenizer", {}).get("tokens", {})
    for token in tokens.values():
        source = token.get("source")
        if isinstance(source, str):
            token["source"] = names[source]
        elif source and "model" in source:
            source["model"] = names[source["model"]]
    return data


def _header(recipe: Recipe, names: Mapping[str, str], adapted: Collection[str]) -> str:
    lines = ["Written by evosearch for mergekit 0.1.5:  mergekit-yaml THIS_FILE OUTPUT_FOLDER"]
    foreign = [name for name in names.values() if ":" in name and not os.path.isabs(name)]
    if foreign:
        lines.append(f"mergekit does not know these references, put a folder in their place: {', '.join(foreign)}")
    if adapted:
        lines.append("With --lora-merge-dtype float32: adapters are then merged as they were here")
    if recipe.merge_method in RANDOM:
        lines.append("mergekit draws other masks than evosearch: the same distribution, other weights")
        if _rescales_by_density(recipe):
            lines.append("what is left is multiplied by 1/density in evosearch, brought to the old L1 norm in mergekit")
    return "".join(f"# {line}\n" for line in lines)
