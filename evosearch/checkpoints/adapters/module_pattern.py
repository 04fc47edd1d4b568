"""Patterns of module names in peft's adapter_config.json: names, or a safe subset of regular expressions.

Patterns come from elsewhere, and Python's `re` may take exponential time. Expressions are therefore parsed by `re`, but
matched here, by following the set of all positions that each part can end at: the time is polynomial for any pattern.
Lookaround, backreferences, flags and deeply nested repetitions are not in the subset.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MAX_CHARACTERS = 500  # of an expression
MAX_NESTED = 2  # repetitions within repetitions
PLAIN = re.compile(r"[\w.-]*", re.ASCII)  # a name; a dot also matches itself as an expression
CATEGORIES = {op.CATEGORY_DIGIT: r"\d", op.CATEGORY_WORD: r"\w", op.CATEGORY_SPACE: r"\s"}
CATEGORIES |= {op.CATEGORY_NOT_DIGIT: r"\D", op.CATEGORY_NOT_WORD: r"\W", op.CATEGORY_NOT_SPACE: r"\S"}
REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT)
BEGINNINGS, ENDS = (op.AT_BEGINNING, op.AT_BEGINNING_STRING), (op.AT_END, op.AT_END_STRING)

Parts = Sequence[tuple[Any, Any]]  # as parsed by `re`: (operation, argument)
Positions = frozenset[int]  # in the text


class UnsafePatternError(ValueError):
    """An expression that is invalid, or not in the safe subset; the message says why."""


@dataclass(frozen=True, eq=False)
class ModulePattern:
    """A compiled pattern; build one with `ModulePattern.of`.

    Attributes:
        text: As written.
        parts: The parsed expression; None for a name.
    """

    text: str
    parts: Parts | None

    @classmethod
    def of(cls, text: str) -> "ModulePattern":
        """Compile a pattern.

        Raises:
            UnsafePatternError: It is not a name, and not an expression of the safe subset.
        """
        if PLAIN.fullmatch(text):
            return cls(text, None)
        if len(text) > MAX_CHARACTERS:
            raise UnsafePatternError(f"is longer than {MAX_CHARACTERS} characters")
        try:
            parsed = _parser.parse(text)
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise UnsafePatternError(f"is not a valid regular expression: {error}") from None
        if parsed.state.flags != re.UNICODE.value:
            raise UnsafePatternError("has flags")
        parts = list(parsed)
        _check(parts, MAX_NESTED)
        return cls(text, parts)

    def matches(self, module: str) -> bool:
        """Return whether the pattern matches a module path, or a suffix of it after a dot, as in peft."""
        if self.parts is None:
            return module == self.text or module.endswith(f".{self.text}")
        starts = frozenset((0, *(index + 1 for index, character in enumerate(module) if character == ".")))
        return len(module) in _ends(self.parts, module, starts)

    def matches_all(self, module: str) -> bool:
        """Return whether the pattern matches the complete module path."""
        if self.parts is None:
            return module == self.text
        return len(module) in _ends(self.parts, module, frozenset((0,)))


def _check(parts: Parts, nested: int) -> None:
    for operation, argument in parts:
        if operation in REPEATS:
            if nested == 0:
                raise UnsafePatternError(f"nests repetitions more than {MAX_NESTED} deep")
            _check(argument[2], nested - 1)
        elif operation is op.SUBPATTERN:
            if argument[1] or argument[2]:
                raise UnsafePatternError("has flags")
            _check(argument[3], nested)
        elif operation is op.BRANCH:
            for branch in argument[1]:
                _check(branch, nested)
        elif operation is op.AT:
            if argument not in BEGINNINGS + ENDS:
                raise UnsafePatternError("has word boundaries")
        elif operation not in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            raise UnsafePatternError("has lookaround, backreferences or conditions")


def _ends(parts: Parts, text: str, positions: Positions) -> Positions:
    """Return every position at which the parts, matched from one of `positions`, can end."""
    for operation, argument in parts:
        if not positions:
            break
        positions = _step(operation, argument, text, positions)
    return positions


def _step(operation: Any, argument: Any, text: str, positions: Positions) -> Positions:
    if operation in REPEATS:
        return _repeated(argument, text, positions)
    if operation is op.SUBPATTERN:
        return _ends(argument[3], text, positions)
    if operation is op.BRANCH:
        found: Positions = frozenset()
        return found.union(*(_ends(branch, text, positions) for branch in argument[1]))
    if operation is op.AT:
        return positions & {0 if argument in BEGINNINGS else len(text)}
    return frozenset(at + 1 for at in positions if at < len(text) and _is(operation, argument, text[at]))


def _repeated(argument: Any, text: str, positions: Positions) -> Positions:
    low, high, parts = argument
    current = positions
    for _ in range(min(low, len(text) + 1)):  # further repetitions match nothing, which changes no position
        current = _ends(parts, text, current)
    found, count = current, low
    while current and count < high:
        current = _ends(parts, text, current) - found
        found, count = found | current, count + 1
    return found


def _is(operation: Any, argument: Any, character: str) -> bool:
    """Return whether a single character matches."""
    if operation is op.LITERAL:
        return bool(ord(character) == argument)
    if operation is op.NOT_LITERAL:
        return bool(ord(character) != argument)
    if operation is op.ANY:
        return character != "\n"
    negated = argument[0][0] is op.NEGATE
    return negated != any(_in_set(kind, value, character) for kind, value in argument[int(negated) :])


def _in_set(kind: Any, value: Any, character: str) -> bool:
    if kind is op.LITERAL:
        return bool(ord(character) == value)
    if kind is op.RANGE:
        return bool(value[0] <= ord(character) <= value[1])
    return re.fullmatch(CATEGORIES[value], character) is not None
