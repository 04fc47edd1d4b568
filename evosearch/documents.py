"""Safe loading and strict validation of YAML documents.

Recipes, search specs and suites are read by this module and share one error format: file and key, the given value, the
allowed values and the closest known name.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from evosearch.errors import InputError, did_you_mean, in_one
from evosearch.untrusted import MAX_INTEGER, boundary, read_text, shown

MAX_BYTES = (
    2**20
)  # the parser needs seconds for it; a recipe with a number for each tensor of eight 7B experts is half of it
MAX_VALUES = 200_000  # keys and values of a file; the same recipe has 25,000
MAX_DEPTH = 64  # levels of nesting; a recipe needs ten
MAX_REPEATED = 100_000  # values repeated by aliases; a few lines can expand to billions


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
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Strict safe YAML: only text, numbers, true, false, null, lists and mappings.

    Duplicate keys are errors, 1e-3 is a number, and 2026-01-01 is text.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._values += 1
        if self._values > MAX_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES} keys and values", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def get_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_node()
        if node is not None:
            _check_size(node)
        return node


def _check_size(root: yaml.Node) -> None:
    """Reject documents that are nested too deeply, refer to themselves, or expand too much by aliases."""
    measured: dict[int, tuple[int, int] | None] = {}  # node → (values, levels); None while in progress

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) not in measured:
            measured[id(node)] = None
            below = [measure(child) for child in _children(node)]
            values, levels = 1 + sum(size for size, _ in below), 1 + max((height for _, height in below), default=0)
            if levels > MAX_DEPTH:
                raise _refusal(node, f"nested more than {MAX_DEPTH} levels deep")
            measured[id(node)] = values, levels
        found = measured[id(node)]
        if found is None:
            raise _refusal(node, "an alias refers to itself")
        return found

    if measure(root)[0] > len(measured) + MAX_REPEATED:
        raise _refusal(root, f"aliases expand to more than {MAX_REPEATED} values")


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
            raise _refusal(key_node, f"key {key!r} is not text; put it in quotes to make it text")
        if key in seen:
            raise _refusal(key_node, f"duplicate key '{key}'")
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    value = str(loader.construct_scalar(node))
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise _refusal(node, "invalid character (\\0 or an unpaired surrogate)")
    return value


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


def _scalar(construct: Callable[[_Loader, yaml.ScalarNode], Any]) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    """Wrap a scalar constructor of PyYAML, which raises various exceptions for values such as `!!int x`."""

    def checked(loader: _Loader, node: yaml.ScalarNode) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _refusal(node, f"{_short(node.value)} is not a valid {node.tag.removeprefix(_TAG)}") from None

    return checked


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    number = int(yaml.SafeLoader.construct_yaml_int(loader, node))
    if abs(number) >= MAX_INTEGER:
        raise _refusal(node, f"{shown(node.value)} is too large; whole numbers are below 2^63")
    return number


def _foreign(loader: _Loader, node: yaml.Node) -> Any:
    raise _refusal(node, f"unknown tag {node.tag}")


_FLOAT = (
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|nan))$"
)
_Loader.yaml_constructors = {
    f"{_TAG}null": _scalar(yaml.SafeLoader.construct_yaml_null),
    f"{_TAG}bool": _scalar(yaml.SafeLoader.construct_yaml_bool),
    f"{_TAG}int": _scalar(_integer),
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
            found = list(yaml.load_all(text, Loader=_Loader))
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
        places = [tuple(item["loc"]) for item in exc.errors(include_url=False)]
        for item in _sorted(exc):  # every member of a union reports an error; only the first is kept
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
    return error(place, f"{message}, got {_short(detail['input'])}", next=_near_word(detail))


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
