"""Safe loading and strict validation of YAML documents.

Recipes, search specs and suites are read by this module and share one error format: file and key, the given value, the
allowed values and the closest known name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from evosearch.errors import InputError, did_you_mean, in_one
from evosearch.strict_yaml import MAX_DEPTH, StrictLoader, short
from evosearch.untrusted import boundary, read_text

MAX_BYTES = (
    2**20
)  # the parser needs seconds for it; a recipe with a number for each tensor of eight 7B experts is half of it


class Document(BaseModel):
    """Base class of YAML documents: frozen, rejects unknown keys, and does not accept `true` or `"1"` as numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, Mapping) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool | str) and field is not None and _only_number(field.annotation, value):
                kind = "A number" if float in _members(field.annotation) else "A whole number"
                raise InputError(name, f"got {value!r}", kind)
        return data


M = TypeVar("M", bound=BaseModel)
UNKNOWN = "unknown key"


def parse(text: str, where: str, error: type[InputError]) -> dict[str, Any]:
    """Parse one YAML mapping from text.

    Raises:
        error: The text is not YAML, or not a single mapping.
    """
    return single(parse_all(text, where, error), where, error)


def single(found: list[dict[str, Any]], where: str, error: type[InputError]) -> dict[str, Any]:
    """Return the only mapping of a file read with `read_all`.

    Raises:
        error: There are several.
    """
    if len(found) > 1:
        raise error(where, f"{len(found)} YAML documents", "Expected one document", "Split the file at '---'")
    return found[0]


def parse_all(text: str, where: str, error: type[InputError]) -> list[dict[str, Any]]:
    """Parse every YAML mapping of a text; empty documents are skipped.

    Raises:
        error: The text is not YAML or empty, or a document is not a mapping.
    """
    with boundary(where, error, "invalid YAML"):
        try:
            found = list(yaml.load_all(text, Loader=StrictLoader))
        except yaml.YAMLError as exc:
            raise error(where, f"invalid YAML: {_yaml_reason(exc)}") from None
        except RecursionError:
            raise error(where, f"invalid YAML: nested more than {MAX_DEPTH} levels deep") from None
    found = [data for data in found if data is not None] or [None]
    for data in found:
        if not isinstance(data, dict):
            raise error(where, f"got {_kind(data)}", "Expected a mapping of keys to values")
    return found


def read(path: Path, error: type[InputError]) -> dict[str, Any]:
    """Read one YAML mapping from a file.

    Raises:
        error: The file is missing, unreadable, too large, not YAML, or not a single mapping.
    """
    return parse(read_text(path, error, MAX_BYTES), str(path), error)


def read_all(path: Path, error: type[InputError]) -> list[dict[str, Any]]:
    """Read every YAML mapping of a file.

    Raises:
        error: The file is missing, unreadable, too large, not YAML or empty, or a document is not a mapping.
    """
    return parse_all(read_text(path, error, MAX_BYTES), str(path), error)


def validate(model: type[M], data: Any, where: str, error: type[InputError]) -> M:
    """Validate `data` as a `model`.

    Args:
        model: Class of the document.
        data: Parsed YAML.
        where: Prefix of the key in the error, such as `night.yaml: recipe`.
        error: Class of the error to raise.

    Raises:
        error: `data` is not a valid `model`; unknown keys are reported first.
    """
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise _translate(_sorted(exc)[0], model, data, where, error) from None


def problems(
    model: type[BaseModel], data: Any, where: str, error: type[InputError]
) -> list[tuple[tuple[str | int, ...], InputError]]:
    """Return location (a tuple of keys) and error of every invalid value in `data`; `validate` raises the first."""
    try:
        model.model_validate(data)
    except ValidationError as exc:
        found: dict[tuple[str | int, ...], tuple[InputError, ...]] = {}
        errors = _sorted(exc)
        places = [tuple(item["loc"]) for item in errors]
        for item in errors:  # every member of a union reports an error; only the first is kept
            if item["type"] == "too_short" and any(
                place[: len(item["loc"])] == item["loc"] != place for place in places
            ):
                continue  # entries are missing because they are invalid
            keys = tuple(_keys_in(data, item["loc"], item["type"] == "missing"))
            found.setdefault(keys, _translate(item, model, data, where, error).problems)
        return [(keys, problem) for keys, each in found.items() for problem in each]
    return []


def validate_all(model: type[M], data: Any, where: str, error: type[InputError]) -> M:
    """Validate like `validate`, and report all unknown keys at once, or else all invalid values.

    Raises:
        error: `data` has one problem.
        Problems: It has several.
    """
    found = [problem for _, problem in problems(model, data, where, error)]
    if found:
        unknown = [problem for problem in found if problem.what == UNKNOWN]  # others may follow from them
        raise in_one(where.partition(": ")[0], unknown or found)
    return validate(model, data, where, error)


def _sorted(exc: ValidationError) -> list[ErrorDetails]:
    """Sort unknown keys first, because a missing key is often a misspelled one."""
    return sorted(exc.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")


def join(where: str, *keys: str | int) -> str:
    """Append keys to a location: `night.yaml: recipe` becomes `night.yaml: recipe.models[1].weight`."""
    out = where
    for key in keys:
        if isinstance(key, int):
            out += f"[{key}]"
        elif out and not out.endswith(": "):
            out += f".{key}" if ": " in out or not out.endswith((".yaml", ".yml")) else f": {key}"
        else:
            out += key
    return out


def dump(data: Mapping[str, Any]) -> str:
    """Serialize to YAML that `parse` reads back unchanged; the order of keys is kept."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _translate(
    detail: ErrorDetails, model: type[BaseModel], data: Any, where: str, error: type[InputError]
) -> InputError:
    keys = _keys_in(data, detail["loc"], detail["type"] == "missing")
    place = join(where, *keys)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, keys[:-1])
        allowed = f"Known keys here: {', '.join(known)}" if known else None
        return error(place, UNKNOWN, allowed, did_you_mean(str(keys[-1]), known))
    if detail["type"] == "missing":
        return error(place, "missing", next="Add this key")
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail.get("ctx", {}).get("error"), InputError):
        causes = detail["ctx"]["error"].problems
        placed = [(join(place, cause.where) if cause.where else place, cause) for cause in causes]
        return in_one(place, [error(at, cause.what, cause.allowed, cause.next) for at, cause in placed])
    if detail["type"] == "value_error":
        return error(place, message)
    return error(place, f"{message}, got {short(detail['input'])}", next=_near_word(detail))


def _near_word(detail: ErrorDetails) -> str | None:
    """Return the nearest allowed word, if a field takes only some words and got another one."""
    words = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    return did_you_mean(detail["input"], words) if isinstance(detail["input"], str) else None


def _keys_in(data: Any, location: tuple[str | int, ...], missing: bool) -> list[str | int]:
    """Return the keys of `data` in a pydantic location, which also contains names of validators and union members."""
    keys: list[str | int] = []
    for index, key in enumerate(location):
        listed = isinstance(data, list | tuple) and isinstance(key, int) and key < len(data)
        if listed or (isinstance(data, Mapping) and key in data):
            data = data[key]
        elif not (missing and index == len(location) - 1):
            continue
        keys.append(key)
    return keys


def _fields_at(model: type[BaseModel], keys: list[str | int]) -> list[str]:
    """Return the known keys of the mapping at `keys`; empty if no model describes it."""
    found: list[Any] = [model]
    for key in keys:
        found = [below for annotation in found for below in _below(annotation, key)]
    fields = [(name, field) for kind in found if _is_model(kind) for name, field in kind.model_fields.items()]
    return list(dict.fromkeys(field.alias or name for name, field in fields))


def _below(annotation: Any, key: str | int) -> list[Any]:
    """Return the types that a value of this type allows under a key."""
    if _is_model(annotation):
        named = [field for name, field in annotation.model_fields.items() if key in (name, field.alias)]
        return [kind for field in named for kind in _members(field.annotation)]
    inner = get_args(annotation)
    if isinstance(key, int) == (get_origin(annotation) in (list, tuple)) and inner:
        return _members(inner[0] if isinstance(key, int) else inner[-1])
    return []


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union or of an annotated type."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _members(member)]
    return [annotation]


def _only_number(annotation: Any, value: bool | str) -> bool:
    """Return whether a field accepts numbers but neither this value's type nor this literal."""
    members = _members(annotation)
    words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
    return bool({int, float} & set(members)) and type(value) not in members and value not in words


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _yaml_reason(exc: yaml.YAMLError) -> str:
    mark = getattr(exc, "problem_mark", None)
    problem = getattr(exc, "problem", None) or str(exc)
    return f"line {mark.line + 1}: {problem}" if mark else problem


def _kind(data: Any) -> str:
    return "an empty file" if data is None else f"a {type(data).__name__}"
