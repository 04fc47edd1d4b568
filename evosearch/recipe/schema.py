"""The recipe: a declarative, complete description of one merged model.

It is mergekit's YAML in its `models` form, plus `seed` and `routing`. A recipe is checked twice: here for its form,
which needs nothing but the file, and in `check` for its sense, which needs the methods' specs.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import RecipeError, did_you_mean
from evosearch.recipe.hops import Routing
from evosearch.recipe.parameters import Setting, leaves, parse_setting
from evosearch.recipe.shapes import MethodSpec, Param

# Parameters that only tune mergekit's memory: read, reported as having no effect here, never hashed.
NO_EFFECT = frozenset({"int8_mask"})
# mergekit keys that this version does not materialize yet, and what to do instead.
NOT_YET = {
    "slices": "write the same merge in the `models` form, or a route as `routing`",
    "modules": "write the merge of the language model in the `models` form",
    "tokenizer_source": "the output takes the tokenizer of `base_model`, or of the first model",
    "tokenizer": "the output takes the tokenizer of `base_model`, or of the first model",
    "chat_template": "the output takes the chat template of `base_model`, or of the first model",
}

Dtype = Literal["float32", "bfloat16", "float16"]
Reference = Annotated[str, Field(min_length=1, max_length=4096)]


def _parse_parameters(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"a mapping of parameter names to values is expected, got {value!r}")
    return {str(name): parse_setting(setting, str(name)) for name, setting in value.items()}


Parameters = Annotated[Mapping[str, Setting], BeforeValidator(_parse_parameters)]


class Input(Document):
    """One parent of a merge, with its own parameters."""

    model: Reference
    parameters: Parameters = Field(default_factory=dict)


class Recipe(Document):
    """One merged model.

    Exactly one of `merge_method` (parameter space) and `routing` (data-flow space) is given. `dtype` is the
    arithmetic's type and `out_dtype` the type the weights are rounded to, before they are scored and when they are
    written; both default to float32.
    """

    merge_method: str | None = None
    base_model: Reference | None = None
    models: tuple[Input, ...] = ()
    parameters: Parameters = Field(default_factory=dict)
    routing: Routing | None = None
    dtype: Dtype = "float32"
    out_dtype: Dtype | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _refuse_later_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in NOT_YET.keys() & data.keys():
                raise RecipeError(str(key), "not supported yet", next=f"Leave it out: {NOT_YET[key]}")
        return data

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if (self.merge_method is None) == (self.routing is None):
            raise ValueError("exactly one of merge_method and routing is expected")
        if self.routing is None and not self.models:
            raise ValueError("models is missing or empty: name at least one model to merge")
        if self.routing is not None and (self.models or self.parameters):
            raise ValueError("models and parameters go with merge_method; a route names its models in its hops")
        return self

    @property
    def output_dtype(self) -> str:
        return self.out_dtype or self.dtype

    @property
    def parents(self) -> tuple[Input, ...]:
        """The models that are merged: `models` without an entry for the base itself."""
        return tuple(entry for entry in self.models if entry.model != self.base_model)

    def references(self) -> tuple[str, ...]:
        """Every model this recipe names, each once, the base first."""
        named = [self.base_model] if self.base_model else []
        named += [entry.model for entry in self.models]
        named += [hop.model for hop in self.routing.hops] if self.routing else []
        return tuple(dict.fromkeys(named))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as it is written: without what equals its default, in the order of a hand-written file."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for entry in data.get("models", ()):
            if not entry.get("parameters"):
                entry.pop("parameters", None)
        return data

    def to_yaml(self) -> str:
        return documents.dump(self.to_dict())


def load(path: Path) -> Recipe:
    """A recipe from a YAML file; relative folders in it are taken from the file's own folder.

    Raises:
        RecipeError: the file is missing or is not a recipe; the message names the key.
    """
    data = documents.read(path, RecipeError)
    return documents.validate(Recipe, anchor(data, path.parent), str(path), RecipeError)


def anchor(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The raw recipe with relative model folders made absolute, so that it means the same from anywhere."""

    def fix(reference: Any) -> Any:
        if not isinstance(reference, str):
            return reference
        if reference.startswith(("./", "../")) or reference in (".", ".."):
            return os.path.normpath(folder.absolute() / reference)  # links stay: what they lead to may change
        if reference.startswith("~/"):
            return str(Path(reference).expanduser())
        return reference

    def walk(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: fix(value) if key in ("model", "base_model") else walk(value) for key, value in node.items()}
        return [walk(item) for item in node] if isinstance(node, list | tuple) else node

    anchored: dict[str, Any] = walk(data)
    return anchored


def check(recipe: Recipe, methods: Mapping[str, MethodSpec], where: str = "recipe") -> list[str]:
    """Check a recipe against the methods: names, required and known parameters, bounds, number of models.

    Args:
        where: what to put before the key in an error, as `night.yaml: recipe`.

    Returns:
        Notes for the user on keys that are accepted and have no effect.

    Raises:
        RecipeError: the first thing wrong.
    """
    if recipe.routing is not None:
        raise route_refusal(where)
    assert recipe.merge_method is not None
    spec = methods.get(recipe.merge_method)
    if spec is None:
        raise RecipeError(
            documents.join(where, "merge_method"),
            f"unknown method '{recipe.merge_method}'",
            f"Known methods: {', '.join(sorted(methods))}",
            did_you_mean(recipe.merge_method, methods),
        )
    _check_models(recipe, spec, where)
    notes = _check_scope(recipe.parameters, spec, documents.join(where, "parameters"))
    for index, entry in enumerate(recipe.models):
        notes += _check_scope(entry.parameters, spec, documents.join(where, "models", index, "parameters"), own=True)
    for name, param in spec.parameters.items():
        _check_given(recipe, spec, name, param, where)
    return notes


def route_refusal(where: str) -> RecipeError:
    """A recipe may hold a route; this version reads it and does not materialize it."""
    what = "routes are read but not materialized by this version"
    return RecipeError(documents.join(where, "routing"), what, "A recipe with merge_method")


def _check_models(recipe: Recipe, spec: MethodSpec, where: str) -> None:
    if spec.needs_base and recipe.base_model is None:
        raise RecipeError(documents.join(where, "base_model"), "missing", f"{spec.name} merges differences from a base")
    names = [entry.model for entry in recipe.models]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise RecipeError(
                documents.join(where, "models", index, "model"),
                f"'{name}' is named twice",
                "Each model once",
                "Give it the sum of both weights",
            )
    least, most = spec.models
    count = len(recipe.parents) if spec.takes_base else len(recipe.models)
    if count < least or (most is not None and count > most):
        allowed = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        besides = " besides the base" if recipe.base_model and spec.takes_base else ""
        raise RecipeError(
            documents.join(where, "models"), f"{count} given", f"{spec.name} takes {allowed} models{besides}"
        )


def _check_scope(parameters: Mapping[str, Setting], spec: MethodSpec, where: str, own: bool = False) -> list[str]:
    notes = []
    for name, setting in parameters.items():
        place = documents.join(where, name)
        if name in NO_EFFECT:
            notes.append(f"{place}: has no effect here (it only tunes mergekit's memory)")
            continue
        param = spec.parameters.get(name)
        if param is None:
            known = f"{spec.name} takes {_listed(spec.parameters)}"
            raise RecipeError(place, "unknown parameter", known, did_you_mean(name, spec.parameters))
        if own and not param.per_model:
            raise RecipeError(place, "is one value for the whole merge", next="Move it to the recipe's own parameters")
        for value in leaves(setting):
            _check_value(value, param, place)
    return notes


def _check_value(value: Any, param: Param, place: str) -> None:
    if param.kind == "bool":
        if not isinstance(value, bool):
            raise RecipeError(place, f"got {value!r}", "true or false")
    elif param.kind == "choice":
        if value not in param.choices:
            raise RecipeError(
                place, f"got {value!r}", f"One of {_listed(param.choices)}", did_you_mean(str(value), param.choices)
            )
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(place, f"got {value!r}", "A number")
    elif param.kind == "int" and value != int(value):
        raise RecipeError(place, f"got {value!r}", "A whole number")
    elif param.strict and not _inside(value, param):
        raise RecipeError(place, f"got {value!r}", f"A number in {interval(param)}")


def _inside(value: float, param: Param) -> bool:
    above = param.low is None or (value > param.low if param.open_low else value >= param.low)
    return above and (param.high is None or value <= param.high)


def interval(param: Param) -> str:
    """`(0, 1]`, as an error message shows it."""
    low = "-inf" if param.low is None else f"{param.low:g}"
    high = "inf" if param.high is None else f"{param.high:g}"
    return f"{'(' if param.open_low or param.low is None else '['}{low}, {high}{')' if param.high is None else ']'}"


def _check_given(recipe: Recipe, spec: MethodSpec, name: str, param: Param, where: str) -> None:
    if param.default is not None or name in recipe.parameters:
        return
    if not param.per_model:
        raise RecipeError(documents.join(where, "parameters", name), "missing", f"{spec.name} needs it")
    for index, entry in enumerate(recipe.models):
        counted = entry.model != recipe.base_model or not spec.takes_base
        if counted and name not in entry.parameters:
            place = documents.join(where, "models", index, "parameters", name)
            raise RecipeError(place, "missing", f"{spec.name} needs one for every model")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
