"""YAML documents: read safely, validated strictly, refused with the file and the key.

Recipes, search specs and suites are all read here, so they fail alike: one error, which names the key, what was got,
what is allowed and the nearest known name.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from evosearch.errors import InputError, did_you_mean

MAX_BYTES = 16 * 2**20  # no hand or search writes a longer document; a mistaken path to a model file is longer
MAX_DEPTH = 64  # levels of nesting; a recipe has ten
MAX_REPEATED = 100_000  # values that aliases repeat: a few lines of them could stand for billions


class Document(BaseModel):
    """Base of all that is read from YAML: frozen; unknown keys are errors; `true` and `"1"` are no numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

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
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Safe YAML, and stricter: it holds text, numbers, true, false, null, lists and mappings, and nothing else.

    A key given twice is an error instead of the last one winning, 1e-3 is a number, and 2026-01-01 is text.
    """

    def get_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_node()
        if node is not None:
            _check_size(node)
        return node


def _check_size(root: yaml.Node) -> None:
    """Refuse what is nested too deeply, holds itself, or is repeated by aliases beyond measure."""
    measured: dict[int, tuple[int, int] | None] = {}  # node → values it stands for, levels below it; None: not yet

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) not in measured:
            measured[id(node)] = None
            below = [measure(child) for child in _children(node)]
            values, levels = 1 + sum(size for size, _ in below), 1 + max((height for _, height in below), default=0)
            if levels > MAX_DEPTH:
                raise _refusal(node, f"nested more than {MAX_DEPTH} deep")
            measured[id(node)] = values, levels
        found = measured[id(node)]
        if found is None:
            raise _refusal(node, "an alias stands inside of what it repeats")
        return found

    if measure(root)[0] > len(measured) + MAX_REPEATED:
        raise _refusal(root, f"aliases repeat more than {MAX_REPEATED} values")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refusal(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _refusal(key_node, f"key {key!r} is not text; put it in quotes if it is meant to be")
        if key in seen:
            raise _refusal(key_node, f"key '{key}' is given twice")
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    value = str(loader.construct_scalar(node))
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise _refusal(node, "a character that no file name and no text has (\\0, or half of a surrogate pair)")
    return value


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


def _scalar(construct: Callable[[_Loader, yaml.ScalarNode], Any]) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    """PyYAML's own reading of a scalar, whose errors over `!!int x` are of any kind."""

    def checked(loader: _Loader, node: yaml.ScalarNode) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _refusal(node, f"{_short(node.value)} is no {node.tag.removeprefix(_TAG)}") from None

    return checked


def _foreign(loader: _Loader, node: yaml.Node) -> Any:
    raise _refusal(node, f"the tag {node.tag} is not known here")


_FLOAT = (
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|nan))$"
)
_Loader.yaml_constructors = {
    f"{_TAG}null": _scalar(yaml.SafeLoader.construct_yaml_null),
    f"{_TAG}bool": _scalar(yaml.SafeLoader.construct_yaml_bool),
    f"{_TAG}int": _scalar(yaml.SafeLoader.construct_yaml_int),
    f"{_TAG}float": _scalar(yaml.SafeLoader.construct_yaml_float),
    f"{_TAG}str": _text,
    f"{_TAG}seq": _sequence,
    f"{_TAG}map": _mapping,
    None: _foreign,
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(_FLOAT), list("-+0123456789."))


def parse(text: str, where: str, error: type[InputError]) -> dict[str, Any]:
    """One YAML mapping from text.

    Raises:
        error: the text is not YAML, or not a mapping.
    """
    found = parse_all(text, where, error)
    if len(found) > 1:
        raise error(where, f"{len(found)} YAML documents", "One document is expected", "Split the file at '---'")
    return found[0]


def parse_all(text: str, where: str, error: type[InputError]) -> list[dict[str, Any]]:
    """Every YAML mapping of a text, at least one; documents without content are passed over.

    Raises:
        error: the text is not YAML, holds nothing, or a document is not a mapping.
    """
    try:
        found = list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as exc:
        raise error(where, f"not readable as YAML: {_yaml_reason(exc)}") from None
    except RecursionError:
        raise error(where, f"not readable as YAML: nested more than {MAX_DEPTH} deep") from None
    except ValueError as exc:
        raise error(where, f"not readable as YAML: {exc}") from None
    found = [data for data in found if data is not None] or [None]
    for data in found:
        if not isinstance(data, dict):
            raise error(where, f"got {_kind(data)}", "A mapping of keys to values is expected")
    return found


def read(path: Path, error: type[InputError]) -> dict[str, Any]:
    """One YAML mapping from a file.

    Raises:
        error: the file is missing, unreadable, too long, not YAML, or not a mapping.
    """
    return parse(_contents(path, error), str(path), error)


def read_all(path: Path, error: type[InputError]) -> list[dict[str, Any]]:
    """Every YAML mapping of a file, at least one.

    Raises:
        error: the file is missing, unreadable, too long, not YAML, or a document is not a mapping.
    """
    return parse_all(_contents(path, error), str(path), error)


def _contents(path: Path, error: type[InputError]) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(str(path), f"larger than {MAX_BYTES >> 20} MiB", "A YAML file is expected")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise error(str(path), "not UTF-8 text", "A YAML file is expected") from None
    except (OSError, ValueError) as exc:  # a name that no file can have
        raise error(str(path), getattr(exc, "strerror", None) or str(exc), next="Check the path") from None


def validate(model: type[M], data: Any, where: str, error: type[InputError]) -> M:
    """`data` as `model`; `where` is prefixed to the key in the error (`night.yaml: recipe`)."""
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise _translate(_sorted(exc)[0], model, data, where, error) from None


def problems(
    model: type[BaseModel], data: Any, where: str, error: type[InputError]
) -> list[tuple[tuple[str | int, ...], InputError]]:
    """Everything that keeps `data` from being a `model`: keys and error of each place. `validate` raises the first."""
    try:
        model.model_validate(data)
    except ValidationError as exc:
        found: dict[tuple[str | int, ...], InputError] = {}
        for item in _sorted(exc):  # each member of a union tells why it is not meant: the first is taken
            keys = tuple(_keys_in(data, item["loc"], item["type"] == "missing"))
            found.setdefault(keys, _translate(item, model, data, where, error))
        return list(found.items())
    return []


def _sorted(exc: ValidationError) -> list[ErrorDetails]:
    """Unknown keys first: what is missing is often misspelled."""
    return sorted(exc.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")


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


def _translate(
    detail: ErrorDetails, model: type[BaseModel], data: Any, where: str, error: type[InputError]
) -> InputError:
    keys = _keys_in(data, detail["loc"], detail["type"] == "missing")
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


def _keys_in(data: Any, location: tuple[str | int, ...], missing: bool) -> list[str | int]:
    """The keys of the file in a location of pydantic's, which also names members of unions and validators."""
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
    """The keys that are known where `keys` lead to; none where that is no mapping of ours."""
    found: list[Any] = [model]
    for key in keys:
        found = [below for annotation in found for below in _below(annotation, key)]
    fields = [(name, field) for kind in found if _is_model(kind) for name, field in kind.model_fields.items()]
    return list(dict.fromkeys(field.alias or name for name, field in fields))


def _below(annotation: Any, key: str | int) -> list[Any]:
    """What may stand under one key of a value of this type."""
    if _is_model(annotation):
        named = [field for name, field in annotation.model_fields.items() if key in (name, field.alias)]
        return [kind for field in named for kind in _members(field.annotation)]
    inner = get_args(annotation)
    if isinstance(key, int) == (get_origin(annotation) in (list, tuple)) and inner:
        return _members(inner[0] if isinstance(key, int) else inner[-1])
    return []


def _members(annotation: Any) -> list[Any]:
    """The types that a union or an annotated type allows."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _members(member)]
    return [annotation]


def _only_number(annotation: Any, value: bool | str) -> bool:
    """Whether a field takes numbers, and neither this value's type nor this word."""
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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
