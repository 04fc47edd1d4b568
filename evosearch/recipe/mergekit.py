"""Conversion of recipes to and from mergekit's YAML.

A recipe is nearly mergekit's own format. Two conventions differ: in a gradient, mergekit evaluates the final norm and
the head at the first layer and evosearch at the last, and mergekit averages an unlisted base into a linear merge. The
files written here depend on neither, so that mergekit computes the same weights.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.recipe.blocks import DEFAULT, Block, Entry, Scope, blocks
from evosearch.recipe.files import is_recipe
from evosearch.recipe.mergekit_route import in_slices
from evosearch.recipe.mergekit_settings import View, conditions, explicit, map_values, views_of
from evosearch.recipe.other_formats import refuse_other_formats
from evosearch.recipe.parameters import Setting, leaves
from evosearch.recipe.schema import NO_EFFECT, Recipe
from evosearch.recipe.shapes import MergekitForm, MethodSpec, ModelShape

INSTEAD = "Export the merged checkpoint instead"


@dataclass(frozen=True)
class _Method:
    """A merge method and its form in mergekit."""

    spec: MethodSpec
    form: MergekitForm

    def has(self, name: str) -> bool:
        """Return whether mergekit has a parameter."""
        return name in self.spec.parameters and name not in self.form.fixed

    def written(self, name: str, setting: Setting) -> Setting:
        """Return a setting in mergekit's values."""
        spelled = self.form.spelled.get(name, {})
        return map_values(setting, lambda value: spelled.get(value, value))

    def read(self, name: str, setting: Setting) -> Setting:
        """Return a setting of mergekit in our values."""
        ours = {theirs: own for own, theirs in self.form.spelled.get(name, {}).items()}
        return map_values(setting, lambda value: ours.get(value, value))

    def differences(self, recipe: Recipe) -> Iterator[str]:
        """Yield in words how mergekit's weights differ from ours."""
        if _optional_base(self) and recipe.base_model is None:
            yield "mergekit takes config and tokenizer from any of the models: compare them with those of the first one"
        if self.spec.random:
            yield "mergekit draws other masks than evosearch: the same distribution, but different weights"
        for name, (inexact, difference) in self.form.inexact.items():
            settings = [scope[name] for _, scope in _scopes(recipe) if name in scope]
            default = self.spec.parameters[name].default
            if any(value == inexact for setting in settings or [default] for value in leaves(setting)):
                yield difference


def to_mergekit(
    recipe: Recipe,
    shape: ModelShape,
    methods: Mapping[str, MethodSpec],
    folders: Mapping[str, str] | None = None,
    adapted: Collection[str] = (),
) -> str:
    """Write a recipe as a file that mergekit merges to the same weights.

    Gradients become one number per layer, after explicit entries for embeddings, final norm and head. References stay
    as they are in the recipe.

    Args:
        recipe: The recipe.
        shape: Shape of the output.
        methods: The registered merge methods by name.
        folders: Reference → folder, for references that mergekit cannot resolve (`zoo:` and other schemes). References
            without an entry are written unchanged and listed in the header.
        adapted: The references that combine a model with an adapter.

    Raises:
        RecipeError: mergekit cannot express the recipe. The message names the key and an alternative.
    """
    method = None if recipe.routing is not None else _expressible(recipe, methods)
    _check_biases(shape)
    names = {reference: (folders or {}).get(reference, reference) for reference in recipe.references()}
    for reference, name in names.items():
        _check_reference(reference, name, reference in adapted)
    if method is None:
        assert recipe.routing is not None
        data = in_slices(recipe.routing, shape, names, INSTEAD)
    else:
        data = _merge(recipe, shape, method, names)
    data |= {"dtype": recipe.dtype, "out_dtype": recipe.output_dtype}
    data |= _vocabulary(recipe, names)
    return _header(recipe, names, adapted, method) + documents.dump(data)


def from_mergekit(text: str, where: str, methods: Mapping[str, MethodSpec]) -> Recipe:
    """Read a recipe from mergekit's YAML.

    Gradients keep evosearch's convention: the final norm and the head are at the last layer. A base that mergekit would
    merge without being listed becomes listed.

    Args:
        text: The YAML document.
        where: Name of the file, for errors.
        methods: The registered merge methods by name.

    Raises:
        RecipeError: The document is malformed or has unsupported keys.
    """
    data = documents.parse(text, where, RecipeError)
    refuse_other_formats(data, where, RecipeError)
    data.pop("name", None)  # used by other documents of a file; without effect in a single one
    recipe = documents.validate(Recipe, data, where, RecipeError)
    method = _by_name_in_mergekit(recipe.merge_method, methods)
    if method is None:
        return recipe
    return _with_base_listed(_in_our_values(recipe, method, where), method, where)


def _merge(recipe: Recipe, shape: ModelShape, method: _Method, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys of a merge: method, base, models or slices, and shared parameters."""
    found = blocks(recipe)
    views = views_of(found, shape)
    data: dict[str, Any] = {"merge_method": method.form.name}
    # Without a base, mergekit takes config and tokenizer from an arbitrary model: the first one of a set.
    if recipe.base_model is not None or not _optional_base(method):
        data["base_model"] = names[recipe.base_model or found[0].entries[0].model]
    if found[0].entries[0].layers is None:
        data["models"] = [_entry_of(method, entry, names, views[0]) for entry in _listed(method, found[0])]
    else:
        data["slices"] = [_slice(recipe, method, block, names, view) for block, view in zip(found, views, strict=True)]
        _check_last_slice(found[-1], [len(each["sources"]) for each in data["slices"]])
    if shared := _shared(method, found, views):
        data["parameters"] = shared
    return data


def _optional_base(method: _Method) -> bool:
    """Return whether the merge is another one with a base, so that none may be added for its config."""
    return method.spec.takes_base and not method.spec.needs_base


def _by_name_in_mergekit(name: str | None, methods: Mapping[str, MethodSpec]) -> _Method | None:
    for spec in methods.values():
        if spec.mergekit is not None and spec.mergekit.name == name:
            return _Method(spec, spec.mergekit)
    return None


def _in_our_values(recipe: Recipe, method: _Method, where: str) -> Recipe:
    """Return the recipe with our method's name and values; mergekit's defaults that are not ours become explicit."""
    written = recipe.to_dict() | {"merge_method": method.spec.name}
    for name in method.form.spelled:
        in_module = recipe.modules and name in blocks(recipe)[0].shared[0]
        holder = written["modules"][DEFAULT] if in_module else written
        own, default = holder.setdefault("parameters", {}), method.spec.parameters[name].default
        value = method.read(name, own.get(name, default))
        if name in own or value != default:
            own[name] = value
    return documents.validate(Recipe, written, where, RecipeError)


def _with_base_listed(recipe: Recipe, method: _Method, where: str) -> Recipe:
    """Return the recipe with its base among the models, if mergekit would merge the base as one of them."""
    if method.spec.takes_base or method.spec.models[1] == 1 or not (recipe.models or recipe.modules):
        return recipe
    first = blocks(recipe)[0]
    if first.entries[0].layers is not None or not _leaves_base_out(first):
        return recipe
    for name in method.form.leave_out or ():
        if not any(name in scope for scope in first.shared):
            what = f"mergekit averages base_model in, and it has no {name}"
            key = documents.join(where, *([first.where] if first.where else []), "models")
            raise RecipeError(key, what, next="List the base in models, or leave base_model out")
    written = recipe.to_dict()
    holder = written["modules"][DEFAULT] if recipe.modules else written
    holder["models"].append({"model": recipe.base_model})
    return documents.validate(Recipe, written, where, RecipeError)


def _leaves_base_out(block: Block) -> bool:
    return block.base is not None and all(entry.model != block.base for entry in block.entries)


def _expressible(recipe: Recipe, methods: Mapping[str, MethodSpec]) -> _Method:
    """Return the recipe's method.

    Raises:
        RecipeError: mergekit lacks the method, a parameter's value, or a feature of the vocabulary.
    """
    spec = methods.get(recipe.merge_method or "")
    if spec is None or spec.mergekit is None:
        known = ", ".join(name for name, other in sorted(methods.items()) if other.mergekit is not None)
        what = f"mergekit has no equivalent of the method '{recipe.merge_method}'"
        raise RecipeError("recipe.merge_method", what, f"Supported methods: {known}", INSTEAD)
    method = _Method(spec, spec.mergekit)
    for where, scope in _scopes(recipe):
        for name, setting in scope.items():
            fixed = method.form.fixed.get(name)
            if not method.has(name) and name not in NO_EFFECT and setting != fixed:
                what = f"mergekit's {method.form.name} has no '{name}'"
                what += f" other than '{fixed}'" if fixed is not None else ""
                raise RecipeError(documents.join(where, name), what, next=INSTEAD)
    _check_vocabulary(recipe)
    return method


def _check_biases(shape: ModelShape) -> None:
    if not shape.mergekit_biases and any(name.endswith(".bias") for name in shape.by_name):
        what = f"mergekit drops the biases of {shape.architecture}"
        raise RecipeError("recipe.models", what, next=INSTEAD)


def _check_vocabulary(recipe: Recipe) -> None:
    if recipe.vocabulary is None:
        return
    if any(block.entries[0].layers is not None for block in blocks(recipe)):
        what = "mergekit takes missing tokens only from the models of one slice; evosearch takes them from all models"
        raise RecipeError("recipe.slices", what, next=INSTEAD)
    for text, token in recipe.vocabulary.tokens.items():
        if token.source is None:
            where = f"recipe.tokenizer.tokens.{text}.source"
            what = "missing; mergekit requires it if a model lacks the token"
            raise RecipeError(where, what, next="Name a model, or use {kind: zero}")


def _scopes(recipe: Recipe) -> Iterator[tuple[str, Scope]]:
    for block in blocks(recipe):
        for key, scope in zip(block.keys, block.shared, strict=True):
            yield documents.join("recipe", key), scope
        for entry in block.entries:
            yield documents.join("recipe", entry.where, "parameters"), entry.own


def _check_reference(reference: str, name: str, adapted: bool) -> None:
    if is_recipe(name):
        what = "mergekit does not accept a recipe as a model"
        raise RecipeError(reference, what, next=f"{INSTEAD}, or merge this recipe first and name its folder")
    parts = name.split("+") if adapted else [name]
    if any("+" in part or (part.startswith(("/", "./", "../", "~")) and "@" in part) for part in parts):
        what = f"mergekit would read part of '{name}' as an adapter or a revision"
        raise RecipeError(reference, what, next="Move the model to a folder without '+' and '@'")


def _check_last_slice(last: Block, counts: list[int]) -> None:
    if counts[-1] > counts[0]:
        what = f"mergekit would use only the first {counts[0]} sources for final norm and head"
        raise RecipeError(documents.join("recipe", last.where, "sources"), what, next=INSTEAD)


def _listed(method: _Method, block: Block) -> list[Entry]:
    """Return the models, always with the base: mergekit appends an unlisted base, with the shared parameters."""
    entries = list(block.entries)
    if block.base is not None and _leaves_base_out(block):
        own: Mapping[str, Setting] = {}
        if not method.spec.takes_base:
            if method.form.leave_out is None:
                what = (
                    f"mergekit's {method.form.name} would merge it; evosearch takes only config and tokenizer from it"
                )
                raise RecipeError("recipe.base_model", what, next=INSTEAD)
            own = method.form.leave_out
        entries.insert(0, Entry(block.base, None, own, "base_model"))
    return entries


def _entry_of(method: _Method, entry: Entry, names: Mapping[str, str], view: View) -> dict[str, Any]:
    settings = _settings(method, entry.own, view)
    layers = {"layer_range": list(entry.layers)} if entry.layers is not None else {}
    return {"model": names[entry.model]} | layers | ({"parameters": settings} if settings else {})


def _slice(recipe: Recipe, method: _Method, block: Block, names: Mapping[str, str], view: View) -> dict[str, Any]:
    entries = list(block.entries)
    if method.spec.takes_base and block.base is not None and _leaves_base_out(block):
        entries.insert(0, Entry(block.base, block.layers_of_base(), {}, "base_model"))
    data: dict[str, Any] = {"sources": [_entry_of(method, entry, names, view) for entry in entries]}
    if block.base is not None and block.base != recipe.base_model:
        data["base_model"] = names[block.base]
    if settings := _settings(method, block.shared[0], view):
        data["parameters"] = settings
    return data


def _shared(method: _Method, found: tuple[Block, ...], views: list[View]) -> dict[str, Any]:
    """Return the recipe's parameters merged with the module's; the module's win where their filters match."""
    scopes = found[0].shared[1:] if found[0].entries[0].layers is not None else found[0].shared
    merged: dict[str, list[dict[str, Any]]] = {}
    for scope in scopes:
        for name, setting in scope.items():
            if method.has(name):
                merged.setdefault(name, []).extend(conditions(method.written(name, setting)))
    return {name: explicit(entries, views) for name, entries in merged.items()}


def _settings(method: _Method, scope: Scope, view: View) -> dict[str, Any]:
    written = {name: conditions(method.written(name, setting)) for name, setting in scope.items() if method.has(name)}
    return {name: explicit(entries, [view]) for name, entries in written.items()}


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


def _header(recipe: Recipe, names: Mapping[str, str], adapted: Collection[str], method: _Method | None) -> str:
    lines = ["Written by evosearch for mergekit 0.1.5:  mergekit-yaml THIS_FILE OUTPUT_FOLDER"]
    foreign = [name for name in names.values() if ":" in name and not os.path.isabs(name)]
    if foreign:
        lines.append(f"mergekit cannot resolve these references; replace them with folders: {', '.join(foreign)}")
    if adapted:
        lines.append("Use --lora-merge-dtype float32, so that mergekit applies adapters in the same type as evosearch")
    lines += method.differences(recipe) if method is not None else ()
    return "".join(f"# {line}\n" for line in lines)
