"""Checkpoints of one training run as models of a recipe.

    models:
      - checkpoints: ./run/checkpoint-*
        last: 5

stands for one entry per folder, in the order of their steps: the numbers in place of the `*`. The entries are listed
when the file is read, so that identity, export and ledger name the models themselves.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import RecipeError

KEY = "checkpoints"
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Checkpoints(Document):
    """The entries of `models` that a pattern stands for."""

    checkpoints: Annotated[str, Field(min_length=1, max_length=4096)]
    """Folders of the run's checkpoints, with one `*` in place of the step: `./run/checkpoint-*`."""
    start: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Least step."""
    every: Count = 1
    """Take every n-th checkpoint, counted back from the newest."""
    last: Count | None = None
    """Take only this many of the newest ones."""
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    """Parameters of the merge method for each checkpoint."""


def expand(data: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Return a raw recipe with an entry for every checkpoint that its patterns stand for.

    Of the folders with a step of at least `start`, every n-th is taken (`every`), counted back from the newest, and of
    these the `last` ones. Their order is that of the steps.

    Args:
        data: The recipe as plain data.
        folder: Folder that relative patterns start from.
        where: Name of the file, for errors.

    Raises:
        RecipeError: A pattern is malformed, matches no folder, or fewer than `last`.
    """
    found = dict(data)
    if isinstance(data.get("models"), list):
        found["models"] = list(_entries(data["models"], folder, documents.join(where, "models")))
    if isinstance(data.get("modules"), Mapping):
        found["modules"] = {
            name: expand(module, folder, documents.join(where, "modules", str(name)))
            if isinstance(module, Mapping)
            else module
            for name, module in data["modules"].items()
        }
    return found


def _entries(models: list[Any], folder: Path, where: str) -> Iterator[Any]:
    for index, entry in enumerate(models):
        if not (isinstance(entry, Mapping) and KEY in entry):
            yield entry
            continue
        place = f"{where}[{index}]"
        given = documents.validate(Checkpoints, dict(entry), place, RecipeError)
        for name in _chosen(given, folder, documents.join(place, KEY)):
            yield {"model": name, **({"parameters": dict(given.parameters)} if given.parameters else {})}


def _chosen(given: Checkpoints, folder: Path, where: str) -> list[str]:
    """Return the references of the checkpoints, in the order of their steps."""
    steps = _steps(given.checkpoints, folder, where)
    late = [step for step in sorted(steps) if step >= given.start]
    taken = late[::-1][:: given.every][::-1]
    if not taken:
        what = f"no checkpoint has a step of at least {given.start}"
        raise RecipeError(where, what, f"Steps of this run: {_listed(sorted(steps))}", "Lower start")
    if given.last is not None and given.last > len(taken):
        what = f"last: {given.last}, but the run has {len(taken)} of them (steps {_listed(taken)})"
        raise RecipeError(where, what, f"At most {len(taken)}", "Lower last, start or every")
    return [steps[step] for step in (taken if given.last is None else taken[-given.last :])]


def _steps(pattern: str, folder: Path, where: str) -> dict[int, str]:
    """Return step → reference of every folder that matches the pattern."""
    parent, _, name = pattern.rpartition("/")
    if name.count("*") != 1 or "*" in parent:
        allowed = "A path whose last part has one '*' in place of the step, such as ./run/checkpoint-*"
        raise RecipeError(where, f"got {pattern!r}", allowed)
    root = folder / os.path.expanduser(parent or ".")
    try:
        names = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    except OSError as error:
        raise RecipeError(where, f"'{root}' cannot be read: {error.strerror}", next="Correct the path") from None
    number = re.compile(r"(\d{1,18})".join(map(re.escape, name.split("*"))))
    found: dict[int, str] = {}
    prefix = (
        parent if parent.startswith(("/", "~", "./", "../")) or parent in (".", "..") else f"./{parent}".rstrip("/")
    )
    for each in sorted(names):
        match = number.fullmatch(each)
        if match is None:
            continue
        step = int(match[1])
        if step in found:
            raise RecipeError(where, f"two folders have the step {step}: {found[step]} and {each}", next="Remove one")
        found[step] = f"{prefix}/{each}"
    if not found:
        what = f"no folder in '{root}' matches {name}"
        raise RecipeError(where, what, "Folders with the step's number in place of the '*'", "Correct the pattern")
    return found


def _listed(steps: list[int]) -> str:
    shown = [*map(str, steps[:3]), "…", str(steps[-1])] if len(steps) > 5 else list(map(str, steps))
    return ", ".join(shown)
