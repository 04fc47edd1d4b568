"""Holes, the search parameters of a recipe.

{low, high}      a number; optional: log, integer, init, name, groups, points, ends,
                 per (layer | group | gradient | module | tensor)
{choices: [..]}  one of a list; optional: init, name
{search: true}   the method's own bounds or choices; optional: the optional keys of the corresponding form above
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from evosearch.documents import Document, join, validate_all
from evosearch.errors import RecipeError
from evosearch.recipe.checks import interval, word
from evosearch.recipe.shapes import Param, Scalar

MARKS = frozenset({"low", "high", "choices", "search"})  # a mapping with one of these keys is a hole
LARGEST, SMALLEST = 1e30, 1e-30  # of bounds, as of fixed values, and of bounds with log: true
Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]


class Hole(Document):
    """One hole as written; `parse` replaces `{search: true}` by bounds or choices."""

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    integer: bool = False
    init: Any = None
    name: Annotated[str, Field(min_length=1, pattern=r"^[^\[\]\.]+$")] | None = None
    per: Literal["layer", "group", "gradient", "module", "tensor"] | None = None
    groups: Annotated[int, Field(ge=1, le=10_000)] | None = None
    points: Annotated[int, Field(ge=2, le=10_000)] | None = None
    ends: Literal["shared", "separate"] | None = None
    choices: Annotated[tuple[Any, ...], Field(max_length=10_000)] | None = None
    search: bool = False

    @property
    def start(self) -> Scalar:
        """Starting value of the search."""
        return self.init  # type: ignore[no-any-return]


def is_hole(node: Any) -> bool:
    """Return whether a value looks like a hole."""
    return isinstance(node, Mapping) and bool(MARKS & node.keys())


def find(node: Any, where: str) -> Iterator[str]:
    """Yield the keys of everything that looks like a hole."""
    if is_hole(node):
        yield where
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from find(value, join(where, str(key)))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from find(value, join(where, index))


def parse(raw: Mapping[str, Any], params: Sequence[Param], layers: int, where: str) -> Hole:
    """Return a checked hole with bounds or choices, and with `init`.

    Args:
        raw: The hole as written.
        params: Descriptions of this parameter by the methods that may be chosen; the hole must satisfy all of them.
        layers: Number of layers of the model.
        where: Prefix of the key in an error.

    Raises:
        RecipeError: The hole is malformed; the message names the key.
    """
    hole = validate_all(Hole, dict(raw), where, RecipeError)
    if hole.search:
        hole = _from_method(hole, params, where)
    elif "search" in hole.model_fields_set:
        raise RecipeError(join(where, "search"), "got false", "true", "Give a fixed value instead")
    if hole.choices is not None:
        return _check_choices(hole, params, where)
    return _check_range(hole, params, layers, where)


def _from_method(hole: Hole, params: Sequence[Param], where: str) -> Hole:
    """Replace `{search: true}` by the bounds or choices that all methods share."""
    for key in ("low", "high", "choices", "integer"):
        if key in hole.model_fields_set:
            raise RecipeError(join(where, key), "not valid with search: true", next="Remove one of the two")
    kinds = {param.kind for param in params}
    if kinds == {"bool"}:
        return hole.model_copy(update={"choices": (False, True), "search": False})
    if kinds == {"choice"}:
        shared = [choice for choice in params[0].choices if all(choice in param.choices for param in params)]
        return hole.model_copy(update={"choices": tuple(shared), "search": False})
    lows = [_searched_low(param) for param in params if param.low is not None]
    highs = [param.high for param in params if param.high is not None]
    if not lows or not highs:
        raise RecipeError(join(where, "search"), "this parameter has no default bounds", next="Give low and high")
    bounds = {"low": max(lows), "high": min(highs), "integer": kinds == {"int"}, "search": False}
    return hole.model_copy(update=bounds)


def _searched_low(param: Param) -> float:
    """Return the lower bound of the search; in an open interval (low, high], 1% of its width above `low`."""
    assert param.low is not None
    if param.open_low and param.strict and param.high is not None:
        return param.low + (param.high - param.low) / 100.0
    return param.low


def _check_choices(hole: Hole, params: Sequence[Param], where: str) -> Hole:
    assert hole.choices is not None
    for key in ("low", "high", "log", "integer", "per", "groups", "points", "ends"):
        if key in hole.model_fields_set:
            raise RecipeError(join(where, key), "not valid with choices", "Known keys here: choices, init, name")
    choices = tuple(float(c) if isinstance(c, int) and not isinstance(c, bool) else c for c in hole.choices)
    for index, choice in enumerate(choices):
        place = join(where, "choices", index)
        if not isinstance(choice, float | bool | str) or (isinstance(choice, float) and not math.isfinite(choice)):
            raise RecipeError(place, f"got {choice!r}", "A number, true, false or a word")
        if any(choice == other for other in choices[:index]):
            raise RecipeError(place, f"{hole.choices[index]!r} is given twice", "Give each choice once")
    if len(choices) < 2:
        raise RecipeError(join(where, "choices"), f"{len(choices)} given", "At least two", "Give a fixed value instead")
    return hole.model_copy(update={"choices": hole.choices, "init": _first_choice(hole, params, where)})


def _first_choice(hole: Hole, params: Sequence[Param], where: str) -> Scalar:
    """Return `init`, else the method's default if it is a choice, else the first choice."""
    assert hole.choices is not None
    if hole.init is not None:
        found = [choice for choice in hole.choices if choice == hole.init and type(choice) is type(hole.init)]
        if not found:
            listed = ", ".join(str(choice) for choice in hole.choices)
            raise RecipeError(join(where, "init"), f"got {hole.init!r}", f"One of the choices: {listed}")
        return found[0]  # type: ignore[no-any-return]
    defaults = [param.default for param in params if param.default is not None]
    found = [c for c in hole.choices for default in defaults if c == default and type(c) is type(default)]
    return found[0] if found else hole.choices[0]  # type: ignore[no-any-return]


def _check_range(hole: Hole, params: Sequence[Param], layers: int, where: str) -> Hole:
    for key in ("low", "high"):
        if getattr(hole, key) is None:
            raise RecipeError(join(where, key), "missing", "A hole has low and high, choices, or search: true")
    low, high = hole.low, hole.high
    assert low is not None
    assert high is not None
    if low >= high:
        raise RecipeError(join(where, "low"), f"got {low:g}", f"Less than high, which is {high:g}")
    hole = hole.model_copy(update={"integer": hole.integer or any(param.kind == "int" for param in params)})
    if hole.integer:
        _check_integer(hole, where)
    if hole.log and low <= 0:
        raise RecipeError(join(where, "low"), f"got {low:g} with log: true", "Greater than 0")
    if hole.log and low < SMALLEST:
        raise RecipeError(join(where, "low"), f"got {low:g} with log: true", f"At least {SMALLEST:g}")
    for param in params:
        _check_bounds(low, high, param, where)
    _check_per(hole, layers, where)
    return hole.model_copy(update={"init": _first_number(hole, params, where)})


def _check_integer(hole: Hole, where: str) -> None:
    for key in ("low", "high"):
        if getattr(hole, key) != int(getattr(hole, key)):
            raise RecipeError(join(where, key), f"got {getattr(hole, key):g}", "A whole number")
    if hole.per == "gradient":
        allowed = "per: layer, group, module or tensor"
        raise RecipeError(join(where, "per"), "a gradient cannot interpolate whole numbers", allowed)


def _check_bounds(low: float, high: float, param: Param, where: str) -> None:
    if param.kind in ("bool", "choice"):
        allowed = "true and false" if param.kind == "bool" else ", ".join(map(word, param.choices))
        raise RecipeError(join(where, "low"), "this parameter is not a number", f"choices: {allowed}")
    if not param.strict:
        return
    below = param.low is not None and (low < param.low or (param.open_low and low == param.low))
    if below:
        raise RecipeError(join(where, "low"), f"got {low:g}", f"A number in {interval(param)}")
    if param.high is not None and high > param.high:
        raise RecipeError(join(where, "high"), f"got {high:g}", f"A number in {interval(param)}")


def _check_per(hole: Hole, layers: int, where: str) -> None:
    for key, per in (("groups", "group"), ("points", "gradient")):
        count = getattr(hole, key)
        if hole.per == per and count is None:
            raise RecipeError(join(where, key), "missing", f"Required by per: {per}")
        if hole.per != per and count is not None:
            raise RecipeError(join(where, key), f"only valid with per: {per}", next=f"Add per: {per}, or remove it")
        if count is not None and count > layers:
            raise RecipeError(join(where, key), f"got {count}", f"At most {layers}, the number of layers")
    if hole.ends is not None and hole.per not in ("layer", "group"):
        raise RecipeError(join(where, "ends"), "only valid with per: layer or per: group", next="Remove it")


def _first_number(hole: Hole, params: Sequence[Param], where: str) -> Scalar:
    """Return `init`, else the method's default if it is within the bounds, else the (geometric, if log) middle."""
    low, high, init = hole.low, hole.high, hole.init
    assert low is not None
    assert high is not None
    if init is not None:
        if isinstance(init, bool) or not isinstance(init, int | float) or not low <= init <= high:
            raise RecipeError(join(where, "init"), f"got {init!r}", f"A number in [{low:g}, {high:g}]")
        if hole.integer and init != int(init):
            raise RecipeError(join(where, "init"), f"got {init!r}", "A whole number")
        return int(init) if hole.integer else float(init)
    for param in params:
        default = param.default
        if isinstance(default, int | float) and not isinstance(default, bool) and low <= default <= high:
            return int(default) if hole.integer else float(default)
    middle = math.sqrt(low * high) if hole.log else (low + high) / 2.0
    return round(middle) if hole.integer else min(max(middle, low), high)
