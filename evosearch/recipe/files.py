"""Recipe files: one recipe, or several of which later ones are made of earlier ones; and recipes as references.

| reference | stands for |
|---|---|
| `./night.yaml` | the recipe in that file; of several, the one without a name |
| `./night.yaml#step` | the recipe named `step` in it |
| `stage:NAME` | what an earlier stage of the same search found: known to that search alone, which passes it on |

In a file of several documents each but one has a `name`, by which the others refer to it.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import RecipeError, did_you_mean
from evosearch.recipe.other_formats import refuse_other_formats
from evosearch.recipe.schema import Recipe
from evosearch.recipe.tokens import BASE, UNION

SUFFIXES = (".yaml", ".yml")
STAGE = "stage:"  # before the name of a stage: the reference to its winner
NAMES_A_MODEL = ("model", "base_model", "tokenizer_source", "source")
LISTS_MODELS = "models"  # entries of a merge, or the names of those that a route is searched through
NAMES_A_TOKENIZER = ("tokenizer_source", "source")  # where `base` and `union` are no models


@dataclass(frozen=True)
class RecipeFile:
    """A file's documents as they are written, in order: name → recipe. Without a name: `None`."""

    recipes: Mapping[str | None, Recipe]

    def to_yaml(self) -> str:
        """The same documents again."""
        named = [({"name": name} if name else {}) | recipe.to_dict() for name, recipe in self.recipes.items()]
        return "---\n".join(documents.dump(data) for data in named)


def load(path: Path, name: str | None = None) -> Recipe:
    """A recipe from a YAML file; relative references in it are taken from the file's own folder.

    Args:
        name: of the document, in a file of several; without it the one that has none, or else the last.

    Raises:
        RecipeError: the file is missing, or one of its documents is not a recipe; the message names the key.
    """
    found = _documents(path)
    wanted = name if name is not None or None in found else next(reversed(found))
    if wanted not in found:
        known = ", ".join(str(other) for other in found if other) or "none"
        near = did_you_mean(str(wanted), [other for other in found if other])
        raise RecipeError(str(path), f"no recipe named '{wanted}'", f"Named here: {known}", near)
    local = {str(other): f"{os.path.abspath(path)}#{other}" for other in found if other is not None}
    recipes = {
        other: documents.validate(Recipe, anchor(data, path.parent, local), where, RecipeError)
        for other, (where, data) in found.items()
    }
    return recipes[wanted]


def load_file(path: Path) -> RecipeFile:
    """Every document of a file, references as they are written.

    Raises:
        RecipeError: see `load`.
    """
    return RecipeFile(
        {name: documents.validate(Recipe, data, where, RecipeError) for name, (where, data) in _documents(path).items()}
    )


def is_recipe(reference: str) -> bool:
    """Whether a reference names a recipe: in a file, or one that a stage found."""
    return reference.startswith(STAGE) or _split(reference)[0].endswith(SUFFIXES)


def load_reference(reference: str, known: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    """The recipe that a reference names.

    Args:
        known: reference → raw recipe, of those that are at hand; of others the file is read.

    Raises:
        RecipeError: see `load`; or it is the winner of a stage, and not at hand.
    """
    if known is not None and reference in known:
        return documents.validate(Recipe, dict(known[reference]), reference, RecipeError)
    if reference.startswith(STAGE):
        what = "names what a stage of a search found, and no such stage is known here"
        raise RecipeError(reference, what, next="Export that winner, and name its file")
    path, name = _split(reference)
    return load(Path(os.path.expanduser(path)), name)


def pieces(reference: str, exists: Callable[[str], bool]) -> tuple[str, ...]:
    """What is joined by '+' in a reference: a model, and an adapter where there is one.

    A path that exists is one piece though it has a '+' in it, the longest such path first.

    Args:
        exists: whether there is a folder or a recipe of that name.
    """
    parts = reference.split("+")
    for end in range(len(parts), 1, -1):
        head = "+".join(parts[:end])
        if exists(head):
            break
    else:
        head, end = parts[0], 1
    return (head, *(pieces("+".join(parts[end:]), exists) if parts[end:] else ()))


def exists(reference: str) -> bool:
    """Whether a reference is the path of something that is there: a folder, or a file with the recipe."""
    path, name = _split(reference)
    try:
        return not (name and "+" in name) and os.path.exists(os.path.expanduser(path))
    except (OSError, RuntimeError, ValueError):  # longer than a path can be, or the home of nobody
        return False


def _split(reference: str) -> tuple[str, str | None]:
    """A file and the name of a recipe in it. Folders may have a '#' in their names, recipes may not."""
    path, sign, name = reference.rpartition("#")
    return (path, name) if sign and path.endswith(SUFFIXES) else (reference, None)


def _documents(path: Path) -> dict[str | None, tuple[str, dict[str, Any]]]:
    """Name → where the document stands, and its data without the name."""
    found: dict[str | None, tuple[str, dict[str, Any]]] = {}
    listed = documents.read_all(path, RecipeError)
    for number, data in enumerate(listed, start=1):
        where = str(path) if len(listed) == 1 else f"{path}: document {number}"
        refuse_other_formats(data, where, RecipeError)
        name = data.pop("name", None)
        if name is not None and not _is_name(name):
            allowed = "A name for the other recipes of this file to use, without '#' and '+'"
            raise RecipeError(documents.join(where, "name"), f"got {name!r}", allowed)
        if name in found:
            what = f"'{name}' is the name of an earlier one" if name else "another document has no name, either"
            raise RecipeError(documents.join(where, "name"), what, "Names are unique, and one document may have none")
        found[name] = (where, data)
    return found


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and not {"#", "+"} & set(name)


def anchor(data: dict[str, Any], folder: Path, local: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The raw recipe with relative references made absolute, so that it means the same from anywhere.

    Args:
        local: names that stand for other references.
    """
    names = local or {}

    def part(reference: str) -> str:
        if reference in names:
            return names[reference]
        relative = reference.startswith(("./", "../")) or reference in (".", "..")
        if relative or (is_recipe(reference) and not reference.startswith(("/", "~", STAGE))):
            return os.path.normpath(folder.absolute() / reference)  # links stay: what they lead to may change
        if reference.startswith("~/"):
            return os.path.expanduser(reference)
        return reference

    def fix(reference: str) -> str:
        return "+".join(part(piece) for piece in pieces(reference, lambda piece: exists(part(piece))))

    anchored: dict[str, Any] = _map_references(data, fix)
    return anchored


def _map_references(node: Any, change: Callable[[str], str]) -> Any:
    if isinstance(node, Mapping):
        return {key: _map_value(key, value, change) for key, value in node.items()}
    return [_map_references(item, change) for item in node] if isinstance(node, list | tuple) else node


def _map_value(key: str, value: Any, change: Callable[[str], str]) -> Any:
    if _names_a_model(key, value):
        return change(value)
    if key == LISTS_MODELS and isinstance(value, list | tuple):
        return [change(item) if isinstance(item, str) else _map_references(item, change) for item in value]
    return _map_references(value, change)


def _names_a_model(key: str, value: Any) -> bool:
    reserved = key in NAMES_A_TOKENIZER and value in (UNION, BASE)
    return key in NAMES_A_MODEL and isinstance(value, str) and not reserved
