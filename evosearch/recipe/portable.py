"""Portable references: a hub id at its commit, or a path relative to the recipe's file; never a path of one machine."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.recipe.files import SAMPLED, STAGE, RecipeFile, exists, map_references, pieces
from evosearch.recipe.provenance import Provenance
from evosearch.recipe.schema import Recipe


def portable_file(written: RecipeFile, folder: Path, commits: Mapping[str, str]) -> RecipeFile:
    """Return the documents of a recipe file with portable references.

    Args:
        written: The documents; references of models are absolute, or names of documents.
        folder: Folder of the file.
        commits: Hub id, with the revision that the recipe names → hub id with the commit.
    """
    names = {name for name in written.recipes if name is not None}
    found: dict[str | None, Recipe] = {}
    for name, recipe in written.recipes.items():
        data = map_references(recipe.to_dict(), lambda one: portable(one, folder, commits, names))
        for key in SAMPLED:
            if data.get("sample", {}).get(key):
                data["sample"][key] = relative(data["sample"][key], folder)
        found[name] = documents.validate(Recipe, data, "recipe", RecipeError)
    return RecipeFile(found)


def portable_provenance(record: Provenance, folder: Path, commits: Mapping[str, str]) -> dict[str, Any]:
    """Return the section `provenance` as plain data with portable references.

    Args:
        record: The section; references are absolute.
        folder: Folder of the file.
        commits: See `portable_file`.
    """
    data: dict[str, Any] = map_references(record.to_dict(), lambda one: portable(one, folder, commits))
    if record.suite is not None and record.suite.file is not None:
        data["suite"]["file"] = relative(record.suite.file, folder)
    return data


def portable(reference: str, folder: Path, commits: Mapping[str, str], names: Collection[str] = ()) -> str:
    """Return one reference in its portable form; those with a scheme, and names of documents, are unchanged."""
    parts = pieces(reference, exists)
    return "+".join(part if part in names else _piece(part, folder, commits) for part in parts)


def relative(path: str, folder: Path) -> str:
    """Return a path relative to a folder, with `./` in front unless it leads out of it."""
    found = os.path.relpath(os.path.abspath(os.path.expanduser(path)), folder)
    return found if found == ".." or found.startswith("../") else f"./{found}"


def _piece(part: str, folder: Path, commits: Mapping[str, str]) -> str:
    if part in commits:
        return commits[part]
    if part.startswith(STAGE):
        return part
    local = part.startswith(("/", "~", "./", "../")) or part in (".", "..") or exists(part)
    return relative(part, folder) if local else part
