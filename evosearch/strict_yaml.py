"""A strict and safe YAML loader: bounded in size, depth and aliases, without duplicate keys or foreign types."""

import re
from collections.abc import Callable
from typing import Any

import yaml

from evosearch.untrusted import MAX_INTEGER, shown

MAX_VALUES = 200_000  # keys and values of a file; the same recipe has 25,000
MAX_DEPTH = 64  # levels of nesting; a recipe needs ten
MAX_REPEATED = 100_000  # values repeated by aliases; a few lines can expand to billions
_TAG = "tag:yaml.org,2002:"


class StrictLoader(yaml.SafeLoader):
    """Strict safe YAML: only text, numbers, true, false, null, lists and mappings.

    Duplicate keys are errors, 1e-3 is a number, and 2026-01-01 is text.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count the node, and compose it."""
        self._values += 1
        if self._values > MAX_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES} keys and values", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def get_node(self) -> yaml.Node | None:
        """Compose a document, and check its size."""
        node: yaml.Node | None = super().get_node()
        if node is not None:
            _check_size(node)
        return node


Scalar = Callable[[StrictLoader, yaml.ScalarNode], Any]


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


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
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


def _text(loader: StrictLoader, node: yaml.ScalarNode) -> str:
    value = str(loader.construct_scalar(node))
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise _refusal(node, "invalid character (\\0 or an unpaired surrogate)")
    return value


def _sequence(loader: StrictLoader, node: yaml.SequenceNode) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


def _scalar(
    construct: Callable[[StrictLoader, yaml.ScalarNode], Any],
) -> Callable[[StrictLoader, yaml.ScalarNode], Any]:
    """Wrap a scalar constructor of PyYAML, which raises various exceptions for values such as `!!int x`."""

    def checked(loader: StrictLoader, node: yaml.ScalarNode) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _refusal(node, f"{short(node.value)} is not a valid {node.tag.removeprefix(_TAG)}") from None

    return checked


def _integer(loader: StrictLoader, node: yaml.ScalarNode) -> int:
    number = int(yaml.SafeLoader.construct_yaml_int(loader, node))
    if abs(number) >= MAX_INTEGER:
        raise _refusal(node, f"{shown(node.value)} is too large; whole numbers are below 2^63")
    return number


def _foreign(loader: StrictLoader, node: yaml.Node) -> Any:
    raise _refusal(node, f"unknown tag {node.tag}")


_FLOAT = (
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|nan))$"
)
StrictLoader.yaml_constructors = {
    f"{_TAG}null": _scalar(yaml.SafeLoader.construct_yaml_null),
    f"{_TAG}bool": _scalar(yaml.SafeLoader.construct_yaml_bool),
    f"{_TAG}int": _scalar(_integer),
    f"{_TAG}float": _scalar(yaml.SafeLoader.construct_yaml_float),
    f"{_TAG}str": _text,
    f"{_TAG}seq": _sequence,
    f"{_TAG}map": _mapping,
    None: _foreign,
}
StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
StrictLoader.add_implicit_resolver(f"{_TAG}float", re.compile(_FLOAT), list("-+0123456789."))


def short(value: Any) -> str:
    """Return a value as Python text of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
