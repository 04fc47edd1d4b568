"""Semantic checks of a recipe that need no model: method, parameters, bounds, number of models."""

from collections.abc import Iterable, Mapping
from typing import Any

from evosearch import documents
from evosearch.errors import RecipeError, did_you_mean
from evosearch.recipe.blocks import Block, Entry, blocks
from evosearch.recipe.hops import Routing
from evosearch.recipe.parameters import Setting, leaves
from evosearch.recipe.schema import NO_EFFECT, Recipe
from evosearch.recipe.shapes import STATISTICS, MethodSpec, Param

NOT_WITH_ROUTING = ("base_model", "tokenizer_source", "tokenizer", "chat_template", "sample")
ROUNDING = 1e-9  # relative tolerance of a product of scales at its bound


def check(recipe: Recipe, methods: Mapping[str, MethodSpec], where: str = "recipe") -> list[str]:
    """Check a recipe against the methods: names, required and known parameters, bounds, number of models.

    Args:
        recipe: The recipe.
        methods: The registered merge methods by name.
        where: Prefix of keys in errors, such as `night.yaml: recipe`.

    Returns:
        Notes for the user on keys that are accepted but have no effect.

    Raises:
        RecipeError: The first problem found.
    """
    if recipe.routing is not None:
        return _check_route(recipe, recipe.routing, where)
    assert recipe.merge_method is not None
    spec = methods.get(recipe.merge_method)
    if spec is None:
        raise RecipeError(
            documents.join(where, "merge_method"),
            f"unknown method '{recipe.merge_method}'",
            f"Known methods: {', '.join(sorted(methods))}",
            did_you_mean(recipe.merge_method, methods),
        )
    notes: dict[str, None] = {}  # in order, without duplicates: blocks share scopes
    if spec.statistic and recipe.sample is None:
        allowed = (
            f"{spec.name} needs {STATISTICS[spec.statistic]} over texts: {{suite: FILE, task: NAME}} or {{text: FILE}}"
        )
        raise RecipeError(documents.join(where, "sample"), "missing", allowed)
    if recipe.sample is not None and (recipe.vocabulary is not None or recipe.chat_template is not None):
        what = "not allowed together with tokenizer, tokenizer_source or chat_template"
        next = "Convert the models first, each by a recipe of its own, and merge these recipes"
        raise RecipeError(documents.join(where, "sample"), what, next=next)
    for key, _ in recipe.named_slices() if spec.sequential else ():
        next = "Name whole models (`models:`), or merge the slices first, by a recipe of their own"
        raise RecipeError(documents.join(where, key), f"{spec.name} merges whole models, layer after layer", next=next)
    if recipe.sample is not None and not spec.statistic:
        notes[f"{documents.join(where, 'sample')}: has no effect, because {spec.name} needs no statistics"] = None
    for block in _located(recipe, where):
        _check_models(block, spec, where)
        for scope, key in zip(block.shared, block.keys, strict=True):
            notes |= dict.fromkeys(_check_scope(scope, spec, documents.join(where, key)))
        for entry in block.entries:
            place = documents.join(where, entry.where, "parameters")
            notes |= dict.fromkeys(_check_scope(entry.own, spec, place, own=True))
        for name, param in spec.parameters.items():
            _check_given(block, spec, name, param, where)
    for key, each in recipe.named_slices():
        if each.residual_weight is not None:
            notes[f"{documents.join(where, key, 'residual_weight')}: has no effect (nor in mergekit)"] = None
    return list(notes)


def check_route_keys(recipe: Recipe, where: str) -> None:
    """Check that a route has no keys about config or tokenizer.

    Raises:
        RecipeError: The recipe is a route and has such a key.
    """
    for key in NOT_WITH_ROUTING if recipe.routing is not None else ():
        if getattr(recipe, key) is not None:
            allowed = "Config, embeddings, head and tokenizer of a route are those of its first hop's model"
            allowed = "A route needs no statistics of its models" if key == "sample" else allowed
            raise RecipeError(documents.join(where, key), "not allowed with routing", allowed, "Remove it")


def _check_route(recipe: Recipe, routing: Routing, where: str) -> list[str]:
    check_route_keys(recipe, where)
    top = routing.max_gain
    for index, divisor in enumerate(routing.divisors()):
        if not 1.0 / top <= divisor * (1.0 + ROUNDING) or not divisor <= top * (1.0 + ROUNDING):
            place = documents.join(where, "routing", "hops", index, "scale")
            what = f"got {routing.hops[index].scale:g}; the product of the scales up to this hop is {divisor:g}"
            allowed = f"The product must be in [{1.0 / top:g}, {top:g}] (routing.max_gain)"
            raise RecipeError(place, what, allowed, "Move this scale or earlier ones closer to 1")
    unused = documents.join(where, "seed")
    return [f"{unused}: has no effect on a route, which draws no random numbers"] if recipe.seed else []


def _located(recipe: Recipe, where: str) -> tuple[Block, ...]:
    try:
        return blocks(recipe)
    except RecipeError as error:
        raise RecipeError(documents.join(where, error.where), error.what, error.allowed, error.next) from None


def _check_models(block: Block, spec: MethodSpec, where: str) -> None:
    if spec.needs_base and block.base is None:
        raise RecipeError(
            documents.join(where, "base_model"), "missing", f"{spec.name} works on differences from a base"
        )
    names = [entry.model for entry in block.entries]
    for index, entry in enumerate(block.entries):
        if entry.model in names[:index]:
            raise RecipeError(
                documents.join(where, entry.where, "model"),
                f"'{entry.model}' is listed twice",
                "Each model may be listed once" + (" per slice" if entry.layers else ""),
                "Give it the sum of both weights" if not entry.layers else "Use two slices",
            )
    if spec.takes_base and block.base is not None:
        _check_base(block, where)
    least, most = spec.models
    count = len(block.parents) if spec.takes_base else len(block.entries)
    if count < least or (most is not None and count > most):
        allowed = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        models = "model" if (least, most) == (1, 1) else "models"
        besides = " besides the base" if block.base and spec.takes_base else ""
        raise RecipeError(
            documents.join(where, block.entries[0].where.rpartition("[")[0]),
            f"got {count} models" if count != 1 else "got 1 model",
            f"{spec.name} takes {allowed} {models}{besides}",
        )


def _check_base(block: Block, where: str) -> None:
    try:
        block.layers_of_base()
    except RecipeError as error:
        raise RecipeError(documents.join(where, error.where), error.what, error.allowed, error.next) from None


def _check_scope(parameters: Mapping[str, Setting], spec: MethodSpec, where: str, own: bool = False) -> list[str]:
    notes = []
    for name, setting in parameters.items():
        place = documents.join(where, name)
        if name in NO_EFFECT:
            notes.append(f"{place}: has no effect (it only tunes mergekit's memory use)")
            continue
        param = spec.parameters.get(name)
        if param is None:
            known = f"{spec.name} takes {_listed(spec.parameters) or 'no parameters'}"
            raise RecipeError(place, "unknown parameter", known, did_you_mean(name, spec.parameters))
        if own and not param.per_model:
            raise RecipeError(place, "not a per-model parameter", next="Move it to the recipe's own parameters")
        for value in leaves(setting):
            _check_value(value, param, place)
    return notes


def _check_value(value: Any, param: Param, place: str) -> None:
    if param.kind == "bool":
        if not isinstance(value, bool):
            raise RecipeError(place, f"got {value!r}", "true or false")
    elif param.kind == "choice":
        if not any(value == choice and type(value) is type(choice) for choice in param.choices):
            words = [word(choice) for choice in param.choices]
            raise RecipeError(place, f"got {value!r}", f"One of {_listed(words)}", did_you_mean(str(value), words))
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(place, f"got {value!r}", "A number")
    elif param.kind == "int" and value != int(value):
        raise RecipeError(place, f"got {value!r}", "A whole number")
    elif param.strict and not _inside(value, param):
        raise RecipeError(place, f"got {value!r}", f"A number in {interval(param)}")


def _inside(value: float, param: Param) -> bool:
    above = param.low is None or (value > param.low if param.open_low else value >= param.low)
    return above and (param.high is None or value <= param.high)


def word(choice: str | bool) -> str:
    """Return a choice as it is written in YAML."""
    return choice if isinstance(choice, str) else str(choice).lower()


def interval(param: Param) -> str:
    """Return a parameter's bounds for an error message, such as `(0, 1]`."""
    low = "-inf" if param.low is None else f"{param.low:g}"
    high = "inf" if param.high is None else f"{param.high:g}"
    return f"{'(' if param.open_low or param.low is None else '['}{low}, {high}{')' if param.high is None else ']'}"


def _check_given(block: Block, spec: MethodSpec, name: str, param: Param, where: str) -> None:
    if param.default is not None or any(name in scope for scope in block.shared):
        return
    if not param.per_model:
        raise RecipeError(documents.join(where, "parameters", name), "missing", f"{spec.name} requires it")
    for entry in block.entries:
        if _counted(entry, block, spec) and name not in entry.own:
            place = documents.join(where, entry.where, "parameters", name)
            raise RecipeError(place, "missing", f"{spec.name} requires one per model")


def _counted(entry: Entry, block: Block, spec: MethodSpec) -> bool:
    return entry.model != block.base or not spec.takes_base


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
