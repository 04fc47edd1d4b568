"""Recipes to and from mergekit's YAML.

A recipe is nearly mergekit's own format. What differs is made explicit here, so that mergekit computes our weights: it
places the final norm and the head at the first layer of a gradient, where we place them at the last, and it averages an
unlisted base into a linear merge. Written files depend on neither.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.recipe.parameters import Setting, evaluate
from evosearch.recipe.schema import NO_EFFECT, Recipe
from evosearch.recipe.shapes import ModelShape, Scalar

# Method → its parameters that mergekit has; of the others only the value named here is what mergekit does.
PARAMETERS = {
    "linear": ("weight", "normalize"),
    "slerp": ("t",),
    "task_arithmetic": ("weight", "normalize", "lambda"),
    "ties": ("weight", "density", "normalize", "lambda"),
}
IMPLIED = {"slerp": {"norm": "keep"}, "ties": {"sign_method": "magnitude", "trim_scope": "tensor"}}
INSTEAD = "Export the merged checkpoint instead"


def to_mergekit(recipe: Recipe, shape: ModelShape, folders: Mapping[str, str] | None = None) -> str:
    """The recipe as a file that mergekit merges to the same weights.

    Gradients become one number a layer behind explicit entries for embeddings, final norm and head. References stay as
    the recipe has them.

    Args:
        shape: the layout of the models.
        folders: reference → folder, for references that mergekit cannot resolve (`zoo:` and other schemes). Without
            an entry they are written as they are, and named in the header.

    Raises:
        RecipeError: mergekit cannot express it; says what, and what to do instead.
    """
    _check_expressible(recipe, shape)
    names = {reference: (folders or {}).get(reference, reference) for reference in recipe.references()}
    for reference, name in names.items():
        _check_reference(reference, name)
    data: dict[str, Any] = {"merge_method": recipe.merge_method}
    # Without a base mergekit takes config and tokenizer from whichever model its hashing puts first.
    data["base_model"] = names[recipe.base_model or recipe.models[0].model]
    data["models"] = [_model(recipe, model, own, names, shape) for model, own in _entries(recipe)]
    if shared := _settings(recipe, recipe.parameters, shape):
        data["parameters"] = shared
    data |= {"dtype": recipe.dtype, "out_dtype": recipe.output_dtype}
    return _header(names) + documents.dump(data)


def from_mergekit(text: str, where: str) -> Recipe:
    """A recipe from mergekit's YAML in its `models` form.

    Gradients keep our meaning: the final norm and the head are at the last layer. Where mergekit would average an
    unlisted base in, it is listed.

    Args:
        where: the file's name, for errors.

    Raises:
        RecipeError: it is not well-formed, or has keys that are not supported.
    """
    recipe = documents.validate(Recipe, documents.parse(text, where, RecipeError), where, RecipeError)
    listed = [entry.model for entry in recipe.models]
    if recipe.merge_method != "linear" or recipe.base_model is None or recipe.base_model in listed:
        return recipe
    if "weight" not in recipe.parameters:
        what = "mergekit averages base_model in, and it has no weight"
        raise RecipeError(
            documents.join(where, "models"), what, next="List the base in models, or leave base_model out"
        )
    data = recipe.to_dict()
    return documents.validate(
        Recipe, data | {"models": [*data["models"], {"model": recipe.base_model}]}, where, RecipeError
    )


def _check_expressible(recipe: Recipe, shape: ModelShape) -> None:
    if recipe.routing is not None:
        raise RecipeError("recipe.routing", "mergekit cannot express this route", next=INSTEAD)
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
    if shape.architecture == "LlamaForCausalLM" and any(name.endswith(".bias") for name in shape.by_name):
        what = "mergekit's Llama has no biases, and would leave these models' out"
        raise RecipeError("recipe.models", what, next=INSTEAD)


def _scopes(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Setting]]]:
    yield "recipe.parameters", recipe.parameters
    for index, entry in enumerate(recipe.models):
        yield documents.join("recipe", "models", index, "parameters"), entry.parameters


def _check_reference(reference: str, name: str) -> None:
    is_path = name.startswith(("/", "./", "../", "~"))
    if "+" in name or (is_path and "@" in name):
        what = f"mergekit would read a part of '{name}' as an adapter or a revision"
        raise RecipeError(reference, what, next="Move the model to a folder without '+' and '@'")


def _entries(recipe: Recipe) -> list[tuple[str, Mapping[str, Setting]]]:
    """The models and their parameters. The base is always listed: unlisted, mergekit adds it last, with parameters."""
    entries = [(entry.model, entry.parameters) for entry in recipe.models]
    if recipe.base_model and all(model != recipe.base_model for model, _ in entries):
        own = {"weight": 0.0} if recipe.merge_method == "linear" else {}  # there the base is but config and tokenizer
        entries.insert(0, (recipe.base_model, own))
    return entries


def _model(
    recipe: Recipe, model: str, own: Mapping[str, Setting], names: Mapping[str, str], shape: ModelShape
) -> dict[str, Any]:
    settings = _settings(recipe, own, shape)
    return {"model": names[model]} | ({"parameters": settings} if settings else {})


def _settings(recipe: Recipe, scope: Mapping[str, Setting], shape: ModelShape) -> dict[str, Any]:
    assert recipe.merge_method is not None
    return {
        name: _explicit(setting, shape) for name, setting in scope.items() if name in PARAMETERS[recipe.merge_method]
    }


def _explicit(setting: Setting, shape: ModelShape) -> Any:
    """The same setting with nothing left to a gradient's convention."""
    if not isinstance(setting, list | tuple):
        return setting
    entries: list[dict[str, Any]] = [{"filter": None, "value": setting}]
    if isinstance(setting[0], Mapping):
        entries = [dict(entry) for entry in setting]
    if not any(isinstance(entry["value"], list | tuple) for entry in entries):
        return [_entry(entry["filter"], entry["value"]) for entry in entries]
    written: list[dict[str, Any]] = []
    earlier: list[str | None] = []
    for entry in entries:
        written += _explicit_entry(entry["filter"], entry["value"], shape, earlier)
        earlier.append(entry["filter"])
    return written


def _explicit_entry(
    pattern: str | None, value: Any, shape: ModelShape, earlier: list[str | None]
) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        return [_entry(pattern, value)]
    matching = [name for name in shape.by_name if _matches(pattern, name)]
    matching = [name for name in matching if not any(_matches(other, name) for other in earlier)]
    if isinstance(value[0], bool | str):  # no numbers to interpolate: rounding of a position must not decide
        return [_entry(name, _at(value, name, shape)) for name in matching]
    ends = [_entry(name, _at(value, name, shape)) for name in matching if shape.by_name[name].layer is None]
    return [*ends, _entry(pattern, _per_layer(value, shape))]


def _matches(pattern: str | None, name: str) -> bool:
    return pattern is None or pattern == "*" or pattern in name


def _per_layer(gradient: Any, shape: ModelShape) -> list[Scalar]:
    """One number a layer; mergekit interpolates between them, and at a layer finds the layer's own."""
    first = {tensor.layer: tensor.name for tensor in reversed(shape.tensors) if tensor.layer is not None}
    return [_at(gradient, first[layer], shape) for layer in range(shape.num_layers)]


def _at(value: Any, name: str, shape: ModelShape) -> Scalar:
    found = evaluate(value, name, shape.position(name))
    assert found is not None
    return found


def _entry(pattern: str | None, value: Any) -> dict[str, Any]:
    return {"value": value} if pattern is None else {"filter": pattern, "value": value}


def _header(names: Mapping[str, str]) -> str:
    lines = ["Written by evosearch for mergekit 0.1.5:  mergekit-yaml THIS_FILE OUTPUT_FOLDER"]
    foreign = [name for name in names.values() if ":" in name and not os.path.isabs(name)]
    if foreign:
        lines.append(f"mergekit does not know these references, put a folder in their place: {', '.join(foreign)}")
    return "".join(f"# {line}\n" for line in lines)
