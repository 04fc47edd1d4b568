"""Line numbers of problems: where the key of an error is in its YAML file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from evosearch import documents
from evosearch.documents import join
from evosearch.errors import InputError
from evosearch.untrusted import read_text

_LAST_KEY = re.compile(r"(\.[^.\[\]]*|\[\d+\])$")


def number_lines(problems: Sequence[InputError]) -> None:
    """Set the line of every problem that is located at a key of a YAML file; a missing key has its parent's."""
    known: dict[str, Mapping[str, int]] = {}
    for problem in problems:
        file, separator, keys = problem.where.partition(": ")
        if separator and file.endswith((".yaml", ".yml")):
            if file not in known:
                known[file] = _lines(Path(file))
            problem.line = line_of(keys, known[file])


def line_of(keys: str, lines: Mapping[str, int]) -> int | None:
    """Return the line of a key, or else of the nearest key above it in the document; None if no key is known.

    Args:
        keys: The key, such as `recipe.models[1].parameters.wieght`.
        lines: Key → line; see `key_lines`.
    """
    while keys not in lines:
        shorter = _LAST_KEY.sub("", keys)
        if shorter == keys:
            return None
        keys = shorter
    return lines[keys]


def key_lines(text: str) -> dict[str, int]:
    """Return the line of every key and list entry of a YAML document, counted from 1: `recipe.models[1].weight` → 12.

    What an alias repeats has the line of the alias alone. A text that is not YAML has none.
    """
    lines: dict[str, int] = {}
    known: set[int] = set()  # nodes, which aliases may repeat very often

    def walk(node: yaml.Node, at: str) -> None:
        if id(node) in known:
            return
        known.add(id(node))
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        listed = node.value if isinstance(node, yaml.SequenceNode) else []
        named = [(join(at, str(key.value)), key, value) for key, value in pairs]
        named += [(join(at, index), value, value) for index, value in enumerate(listed)]
        for place, marked, below in named:
            lines.setdefault(place, marked.start_mark.line + 1)
            walk(below, place)

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            walk(root, "")
    except (yaml.YAMLError, RecursionError):
        return {}
    return lines


def _lines(file: Path) -> Mapping[str, int]:
    try:
        return key_lines(read_text(file, InputError, documents.MAX_BYTES))
    except InputError:
        return {}
