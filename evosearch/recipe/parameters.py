"""Parameter settings (scalars, gradients over depth, filters) and their evaluation at one tensor.

The semantics are mergekit's. A list of numbers is a gradient, interpolated linearly from the first layer (0) to the
last (1). A list of `{filter, value}` entries is tried in order; the first filter that is a substring of the tensor's
name wins. If none matches, the next scope is tried.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evosearch.errors import RecipeError, did_you_mean
from evosearch.recipe.shapes import Scalar

# A scalar, a gradient (list of scalars), or a list of {"filter": str | None, "value": scalar | gradient}.
Setting = Any
_KEYS = ("filter", "value")


def parse_setting(raw: Any, name: str) -> Setting:
    """Parse a setting as read from YAML.

    Raises:
        RecipeError: The value has none of the three forms. The error's `where` is relative to the parameters.
    """
    if isinstance(raw, Mapping):
        return [_parse_conditional(raw, name)]
    if isinstance(raw, list | tuple) and any(isinstance(item, Mapping) for item in raw):
        return [_parse_conditional(item, f"{name}[{index}]") for index, item in enumerate(raw)]
    return _parse_value(raw, name)


def _parse_conditional(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise RecipeError(where, f"got {raw!r}", "Use either numbers only (a gradient) or {filter, value} entries only")
    for key in raw:
        if key not in _KEYS:
            raise RecipeError(
                f"{where}.{key}", "unknown key", f"Known keys here: {', '.join(_KEYS)}", did_you_mean(str(key), _KEYS)
            )
    if "value" not in raw:
        raise RecipeError(f"{where}.value", "missing", next="Add the value for tensors that match the filter")
    pattern = raw.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise RecipeError(f"{where}.filter", f"got {pattern!r}", "A substring of tensor names, or '*'")
    return {"filter": pattern, "value": _parse_value(raw["value"], f"{where}.value")}


def _parse_value(raw: Any, where: str) -> Setting:
    if isinstance(raw, list | tuple):
        if not raw:
            raise RecipeError(where, "an empty list", "One number, or a list of at least one")
        values = [_parse_scalar(item, f"{where}[{index}]") for index, item in enumerate(raw)]
        if len({isinstance(value, str | bool) for value in values}) > 1:
            raise RecipeError(where, f"got {raw!r}", "All values of a gradient must have one type")
        return values
    return _parse_scalar(raw, where)


def _parse_scalar(raw: Any, where: str) -> Scalar:
    if isinstance(raw, bool | str):
        return raw
    if isinstance(raw, int | float):
        if raw != raw or abs(raw) == float("inf") or abs(raw) > 1e30:
            raise RecipeError(where, f"got {raw!r}", "A finite number")
        return raw
    raise RecipeError(where, f"got {raw!r}", "A number, a list of numbers, or a list of {filter, value}")


def leaves(setting: Setting) -> Iterator[Scalar]:
    """Yield every scalar of a setting."""
    if isinstance(setting, Mapping):
        yield from leaves(setting["value"])
    elif isinstance(setting, list | tuple):
        for item in setting:
            yield from leaves(item)
    else:
        yield setting


def evaluate(setting: Setting, tensor: str, position: float) -> Scalar | None:
    """Return the value of a setting at one tensor.

    Args:
        setting: The setting.
        tensor: Name of the tensor on disk.
        position: Relative depth of the tensor in [0, 1], at which gradients are evaluated.

    Returns:
        The scalar, or None if no filter matches.
    """
    if not isinstance(setting, list | tuple):
        return setting  # type: ignore[no-any-return]
    if isinstance(setting[0], Mapping):
        for entry in setting:
            if entry["filter"] is None or entry["filter"] == "*" or entry["filter"] in tensor:
                return evaluate(entry["value"], tensor, position)
        return None
    return _interpolate(setting, position)


def _interpolate(values: Sequence[Any], position: float) -> Scalar:
    at = position * (len(values) - 1)
    if isinstance(values[0], bool | str):
        return values[int(at + 1e-9)]  # type: ignore[no-any-return]
    low = int(at)
    high = min(low + 1, len(values) - 1)
    fraction = at - low
    return (1.0 - fraction) * values[low] + fraction * values[high]  # type: ignore[no-any-return]


def lookup(name: str, scopes: tuple[Mapping[str, Setting], ...], tensor: str, position: float) -> Scalar | None:
    """Return the value of a parameter at one tensor, from the first scope that has one; narrowest scope first."""
    for scope in scopes:
        if name in scope:
            value = evaluate(scope[name], tensor, position)
            if value is not None:
                return value
    return None
