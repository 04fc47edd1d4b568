"""YAML documents: read safely, validated strictly, refused with the file and the key.

Recipes, search specs and suites are all read here, so they fail alike: one error, which names the key, what was got,
what is allowed and the nearest known name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from evosearch.errors import InputError, did_you_mean

MAX_BYTES = 16 * 2**20  # no hand or search writes a longer document; a mistaken path to a model file is longer


class Document(BaseModel):
    """Base of everything that is read from YAML: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of the last one winning, and 1e-3 is a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_FLOAT = (
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|nan))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789."))


def parse(text: str, where: str, error: type[InputError]) -> dict[str, Any]:
    """One YAML mapping from text.

    Raises:
        error: the text is not YAML, or not a mapping.
    """
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as exc:
        raise error(where, f"not readable as YAML: {_yaml_reason(exc)}") from None
    except (RecursionError, ValueError) as exc:
        raise error(where, f"not readable as YAML: {exc or 'nested too deeply'}") from None
    if not isinstance(data, dict):
        raise error(where, f"got {_kind(data)}", "A mapping of keys to values is expected")
    return data


def read(path: Path, error: type[InputError]) -> dict[str, Any]:
    """One YAML mapping from a file.

    Raises:
        error: the file is missing, unreadable, too long, not YAML, or not a mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(str(path), f"larger than {MAX_BYTES >> 20} MiB", "A YAML file is expected")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise error(str(path), "not UTF-8 text", "A YAML file is expected") from None
    except OSError as exc:
        raise error(str(path), exc.strerror or str(exc), next="Check the path") from None
    return parse(text, str(path), error)


def validate(model: type[M], data: Any, where: str, error: type[InputError]) -> M:
    """`data` as `model`; `where` is prefixed to the key in the error (`night.yaml: recipe`)."""
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        details = sorted(exc.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
        raise _translate(details[0], model, where, error) from None


def join(where: str, *keys: str | int) -> str:
    """`night.yaml: recipe.models[1].weight` from `night.yaml: recipe` and the keys below it."""
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
    """YAML text that `parse` reads back equal; keys keep their order."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _translate(detail: ErrorDetails, model: type[BaseModel], where: str, error: type[InputError]) -> InputError:
    keys = [key for key in detail["loc"] if isinstance(key, int) or not _is_tag(key)]
    place = join(where, *keys)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, keys[:-1])
        allowed = f"Known keys here: {', '.join(known)}" if known else None
        return error(place, "unknown key", allowed, did_you_mean(str(keys[-1]), known))
    if detail["type"] == "missing":
        return error(place, "missing", next="Add this key")
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail.get("ctx", {}).get("error"), InputError):
        cause = detail["ctx"]["error"]
        return error(join(place, cause.where) if cause.where else place, cause.what, cause.allowed, cause.next)
    return error(place, message if detail["type"] == "value_error" else f"{message}, got {_short(detail['input'])}")


def _is_tag(key: str) -> bool:
    """Pydantic adds the names of union members and validators to a location; they are no keys of the file."""
    return (
        "[" in key or "(" in key or key in {"str", "int", "float", "bool"} or (key[:1].isupper() and key.isidentifier())
    )


def _fields_at(model: type[BaseModel], keys: list[str | int]) -> list[str]:
    current: Any = model
    for key in keys:
        if isinstance(key, int):
            continue
        field = current.model_fields.get(key) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if field is None:
            by_alias = [f for f in getattr(current, "model_fields", {}).values() if f.alias == key]
            if not by_alias:
                return []
            field = by_alias[0]
        current = _inner_model(field.annotation)
    if not (isinstance(current, type) and issubclass(current, BaseModel)):
        return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _inner_model(inner)
        if found is not None:
            return found
    return None


def _yaml_reason(exc: yaml.YAMLError) -> str:
    mark = getattr(exc, "problem_mark", None)
    problem = getattr(exc, "problem", None) or str(exc)
    return f"line {mark.line + 1}: {problem}" if mark else problem


def _kind(data: Any) -> str:
    return "an empty file" if data is None else f"a {type(data).__name__}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
