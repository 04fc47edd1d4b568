"""Mutations of YAML documents, as data and as text; the result may be malformed.

All random choices come from one `random.Random`, so that a seed, or hypothesis, determines them.
"""

import datetime
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import yaml

Place = tuple[Any, Any]  # (mapping or list, one of its keys or indices)

HOLES: tuple[Any, ...] = (
    {"low": 0.0, "high": 1.0},
    {"low": 1, "high": 0},
    {"low": 0, "high": 10**40, "log": True},
    {"low": float("nan"), "high": float("inf")},
    {"choices": []},
    {"choices": [1, True, "a", None]},
    {"choices": [[1], {"a": 1}]},
    {"search": True},
    {"search": False, "low": 0},
    {"low": 0.0, "high": 1.0, "per": "layer"},
    {"low": 0.0, "high": 1.0, "per": "module"},
    {"low": 0.0, "high": 1.0, "per": "tensor", "ends": "shared"},
    {"low": 0.0, "high": 1.0, "per": "group", "groups": 10**9},
    {"low": 0.0, "high": 1.0, "per": "gradient", "points": 2, "name": "a[b]"},
    {"low": 0, "high": 3, "integer": True, "init": 1.5},
)
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    float("nan"),
    float("-inf"),
    2**63,
    10**40,
    -(10**400),
    1e308,
    5e-324,
    "",
    " ",
    "\n\t",
    "~",
    "~nobody/here",
    "null",
    "1e5",
    "0x1f",
    "base",
    "union",
    ".",
    "./",
    "./here.yaml",
    "./here.yaml#step",
    "a+b+c",
    "org/x@y@z",
    "a#b",
    "*",
    "ß\N{GRINNING FACE}\u202e",
    "x" * 5000,
    "a/" * 300,
    b"bytes",
    datetime.date(2026, 1, 1),
    {1, 2},
    [],
    {},
    [None],
    [[[]]],
    [0.5, 0.25],
    [True, False],
    [1, "a"],
    {"filter": "mlp", "value": 0.5},
    {"filter": None},
    [{"filter": "mlp", "value": [1, 2]}, {"value": {"value": 1}}],
    {1: 2, None: 3},
    {"model": "org/x"},
    [{"model": "org/x"}] * 3,
    {"": {"": {"": ""}}},
    *HOLES,
)
KEYS = (
    "",
    " ",
    "zzz",
    "Model",
    "models",
    "name",
    "search",
    "filter",
    "value",
    "a.b[0]",
    "ключ",
    "\N{GRINNING FACE}",
    "<<",
    "=",
)
TEXTS = (
    "!!binary aGk= ",
    "!!python/object/apply:os.system [ls] ",
    "!!set {a, b} ",
    "!!int x ",
    "!!float '' ",
    "!!bool maybe ",
    "!!timestamp 2026-01-01 ",
    "!local ",
    "&a ",
    "*a ",
    "*missing ",
    "<<: *a\n",
    "? [complex, key]\n: 1\n",
    "---\n",
    "...\n",
    "%YAML 3.0\n---\n",
    "{",
    "[",
    "]",
    "'",
    '"',
    '"\\0"',
    '"\\ud800"',
    "\\x41",
    "\t",
    "\x07",
    "\x00",
    "\ufeff",
    "\r",
    "|\n",
    ">-\n",
    "@",
    "`",
    "# ",
    ": ",
    "- ",
    "1_000",
    "12:30:45",
    "0b101",
    "0o17",
    "017",
    ".inf",
    ".NaN",
    "9" * 5000,
    "2026-01-01T00:00:00Z",
)


def mutate(seed: Sequence[dict[str, Any]], draw: random.Random) -> str:
    """Serialize the documents `seed` with one to four mutations of data or text, in most cases one."""
    data = [deepcopy(document) for document in seed]
    count = draw.choice([1, 1, 1, 2, 3, 4])
    to_text = draw.randint(0, count) if draw.random() < 0.5 else 0
    for _ in range(count - to_text):
        draw.choice(TO_DATA)(data[draw.randrange(len(data))], draw)
    text = yaml.safe_dump_all(
        data, sort_keys=False, allow_unicode=True, default_flow_style=draw.choice([None, False, True])
    )
    for _ in range(to_text):
        text = draw.choice(TO_TEXT)(text, draw)
    return text


def bombs() -> list[str]:
    """Short texts that expand to huge or self-referential data."""
    levels = range(1, 40)
    lists = "a0: &a0 [1,2,3,4,5,6,7,8,9,0]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in levels
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in levels)
    chain = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))
    deep = ["[" * 10_000, "{a: " * 10_000, "- " * 10_000, "a: " + "[" * 500 + "]" * 500]
    return [
        lists,
        merges,
        chain,
        "a: &a [*a]",
        "&a {b: *a}",
        "a: &a\n  <<: *a\n",
        *deep,
        "9" * 100_000,
        "a: " + "9" * 10_000,
    ]


def _places(node: Any) -> list[Place]:
    found: list[Place] = []
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    for key in keys:
        found.append((node, key))
        found += _places(node[key])
    return found


def _some(data: Any, draw: random.Random) -> Place | None:
    places = _places(data)
    return draw.choice(places) if places else None


def _replace(data: Any, draw: random.Random) -> None:
    if place := _some(data, draw):
        place[0][place[1]] = deepcopy(draw.choice(ODD))


def _drop(data: Any, draw: random.Random) -> None:
    if place := _some(data, draw):
        del place[0][place[1]]


def _rename(data: Any, draw: random.Random) -> None:
    places = [place for place in _places(data) if isinstance(place[0], dict) and isinstance(place[1], str)]
    if not places:
        return
    node, key = draw.choice(places)
    misspelled = key[:-1] or "k", key + "s", key.upper(), key[::-1], draw.choice(KEYS)
    node[draw.choice(misspelled)] = node.pop(key)


def _add(data: Any, draw: random.Random) -> None:
    nodes = [node for node in (data, *(parent[key] for parent, key in _places(data))) if isinstance(node, dict | list)]
    if not nodes:
        return
    node = draw.choice(nodes)
    if isinstance(node, dict):
        known = [key for other, key in _places(data) if isinstance(other, dict)]
        node[draw.choice([*KEYS, *known])] = deepcopy(draw.choice(ODD))
    else:
        node.insert(draw.randint(0, len(node)), deepcopy(draw.choice([*ODD, *node])))


def _copy_elsewhere(data: Any, draw: random.Random) -> None:
    one, other = _some(data, draw), _some(data, draw)
    if one and other:
        one[0][one[1]] = deepcopy(other[0][other[1]])


def _share(data: Any, draw: random.Random) -> None:
    """Use one value at two places, so that it is written as an anchor and an alias."""
    one, other = _some(data, draw), _some(data, draw)
    if one and other:
        shared = deepcopy(other[0][other[1]])
        one[0][one[1]] = shared
        other[0][other[1]] = shared


def _nest(data: Any, draw: random.Random) -> None:
    if place := _some(data, draw):
        for _ in range(draw.choice([1, 2, 30])):
            value = place[0][place[1]]
            place[0][place[1]] = draw.choice([[value], {draw.choice(KEYS): value}])


def truncate(text: str, draw: random.Random) -> str:
    """Cut the end of a text."""
    return text[: draw.randint(0, len(text))]


def _insert(text: str, draw: random.Random) -> str:
    at = draw.randint(0, len(text))
    return text[:at] + draw.choice(TEXTS) + text[at:]


def _put_before_value(text: str, draw: random.Random) -> str:
    """Insert a tag, an anchor or an alias before a value."""
    at = [index + 2 for index in range(len(text)) if text.startswith((": ", "- "), index)]
    if not at:
        return text
    index = draw.choice(at)
    return text[:index] + draw.choice(TEXTS) + text[index:]


def _repeat_line(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    lines.insert(draw.randint(0, len(lines)), draw.choice(lines))
    return "".join(lines)


def _move_line(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    line = lines.pop(draw.randrange(len(lines)))
    lines.insert(draw.randint(0, len(lines)), draw.choice(["", " ", "  ", "\t"]) + line)
    return "".join(lines)


def change_character(text: str, draw: random.Random) -> str:
    """Replace one character."""
    if not text:
        return text
    at = draw.randrange(len(text))
    return text[:at] + chr(draw.choice([*range(32, 127), 0, 7, 9, 10, 0x85, 0x2028, 0xFFFE, 0x1F600])) + text[at + 1 :]


TO_DATA: tuple[Callable[[Any, random.Random], None], ...] = (
    _replace,
    _replace,
    _drop,
    _rename,
    _add,
    _copy_elsewhere,
    _share,
    _nest,
)
TO_TEXT: tuple[Callable[[str, random.Random], str], ...] = (
    truncate,
    _insert,
    _put_before_value,
    _repeat_line,
    _move_line,
    change_character,
)
