"""Drafts of search specs: YAML with a comment above each key, written once and never over another file."""

import json
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import InputError, SpecError
from evosearch.spec.stages import parse

WIDTH = 110
LONGEST_NAME = 40  # characters of a name that is made from a file's
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Section:
    """One key of a draft.

    Attributes:
        key: The key.
        value: Its value, as plain data.
        why: Sentences of the comment above it, one paragraph each.
    """

    key: str
    value: Any
    why: tuple[str, ...] = ()


def render(head: Sequence[str], sections: Sequence[Section]) -> str:
    """Return YAML with comments.

    Args:
        head: Paragraphs of the comment at the top.
        sections: The keys, in order.
    """
    parts = [comment(head), *(comment(section.why) + _key(section) for section in sections)]
    return "\n".join(part for part in parts if part)


def _key(section: Section) -> str:
    value = json.loads(json.dumps(section.value))  # without shared parts, which YAML would write as aliases
    text = documents.dump({section.key: value})
    return text if not text.startswith("{") else f"{text.rstrip()[1:-1]}\n"  # a single value, in flow style


def comment(paragraphs: Sequence[str]) -> str:
    """Return paragraphs as comment lines; control characters become spaces, so that no text can end the comment."""
    lines: list[str] = []
    for paragraph in paragraphs:
        plain = "".join(char if char.isprintable() else " " for char in paragraph)
        lines += textwrap.wrap(plain, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def free_path(path: Path, error: type[InputError] = SpecError) -> Path:
    """Return the path of a file to write.

    Raises:
        error: It exists, its folder does not, or it does not end in .yaml.
    """
    if path.suffix not in SUFFIXES:
        raise error(str(path), "not a YAML file's name", f"A name that ends in {' or '.join(SUFFIXES)}")
    if os.path.lexists(path):
        raise error(str(path), "exists already, and is not overwritten", next="Choose another name with -o FILE")
    if not path.absolute().parent.is_dir():
        raise error(str(path), "its folder does not exist", next="Create the folder, or choose another name with -o")
    return path


def name_of(path: Path) -> str:
    """Return the name of a search that a file's name gives: letters, digits, dots, dashes and underscores."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:LONGEST_NAME]
    return name or "search"


def local_reference(reference: str, folder: Path) -> str:
    """Return a reference as a file in `folder` writes it: an existing relative path starts there with `./` or `../`.

    Absolute paths, `~`, schemes (`zoo:tiny/base`) and hub ids are kept.
    """
    expanded = os.path.expanduser(reference)
    if os.path.isabs(expanded) or not os.path.exists(expanded):
        return reference
    relative = os.path.relpath(os.path.abspath(reference), folder.absolute())
    return relative if relative.startswith("..") else f"./{relative}"


def write_new(files: Sequence[tuple[Path, str]]) -> None:
    """Write files that do not exist yet, all of them or none.

    Raises:
        SpecError: One of them exists, or cannot be written; those that were written are removed again.
    """
    written: list[Path] = []
    try:
        for path, text in files:
            with open(path, "x", encoding="utf-8") as file:  # never over a file that appeared in the meantime
                written.append(path)
                file.write(text)
    except OSError as exc:
        for path in written:
            path.unlink(missing_ok=True)
        failed = files[len(written)][0] if isinstance(exc, FileExistsError) else files[max(0, len(written) - 1)][0]
        raise SpecError(str(failed), f"cannot be written: {exc.strerror}", next="Choose another name with -o") from exc


def parsed(path: Path, text: str) -> Any:
    """Parse a draft as the spec in a file at `path`, which need not exist.

    Raises:
        InputError: The draft is invalid.
    """
    return parse(path, documents.parse(text, str(path), SpecError))
