"""Recipe files, and references to recipes.

| reference | meaning |
|---|---|
| `./night.yaml` | the recipe in that file; of several, the one without a name |
| `./night.yaml#step` | the recipe named `step` in that file |
| `stage:NAME` | the winner of an earlier stage of the same search; only that search can resolve it |

In a file of several documents, all but one have a `name`, by which the others refer to them.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import RecipeError, did_you_mean
from evosearch.recipe.other_formats import refuse_other_formats
from evosearch.recipe.placebo_reference import PREFIX as PLACEBO
from evosearch.recipe.provenance import KEY, Provenance
from evosearch.recipe.run_checkpoints import expand
from evosearch.recipe.schema import Recipe
from evosearch.recipe.tokens import BASE, UNION
from evosearch.untrusted import beside, shown

SUFFIXES = (".yaml", ".yml")
STAGE = "stage:"  # prefix of a reference to the winner of a stage
NAMES_A_MODEL = ("model", "base_model", "tokenizer_source", "source")
MAX_PIECES = 16  # separated by "+" in a reference: a model, an adapter, and names that contain a "+"
LISTS_MODELS = "models"  # entries of a merge, or the models that a route search may use
SAMPLED = ("suite", "text")  # keys of a sample that name files
NAMES_A_TOKENIZER = ("tokenizer_source", "source")  # for these keys, `base` and `union` are not models


@dataclass(frozen=True)
class RecipeFile:
    """The documents of a file in order: name → recipe. The name is None for a document without one."""

    recipes: Mapping[str | None, Recipe]

    def to_yaml(self, provenance: Mapping[str, Any] | None = None) -> str:
        """Return the documents as YAML, the one without a name with the section `provenance` if there is one."""
        named = [({"name": name} if name else {}) | recipe.to_dict() for name, recipe in self.recipes.items()]
        if provenance is not None:
            named[-1][KEY] = dict(provenance)
        return "---\n".join(documents.dump(data) for data in named)


def load(path: Path, name: str | None = None) -> Recipe:
    """Load a recipe from a YAML file. Relative references are resolved against the file's folder.

    Args:
        path: The file.
        name: Name of the document; by default the document without a name, or else the last one.

    Raises:
        RecipeError: The file is missing, or one of its documents is not a recipe. The message names the key.
    """
    found, _ = _documents(path)
    wanted = name if name is not None or None in found else next(reversed(found))
    if wanted not in found:
        known = ", ".join(str(other) for other in found if other) or "none"
        near = did_you_mean(str(wanted), [other for other in found if other])
        raise RecipeError(str(path), f"no recipe named '{wanted}'", f"Named here: {known}", near)
    local = _local(found, path)
    recipes = {
        other: documents.validate(Recipe, anchor(data, path.parent, local, where), where, RecipeError)
        for other, (where, data) in found.items()
    }
    return recipes[wanted]


def load_file(path: Path) -> RecipeFile:
    """Load every document of a file, with references as written.

    Raises:
        RecipeError: See `load`.
    """
    return RecipeFile(
        {
            name: documents.validate(Recipe, data, where, RecipeError)
            for name, (where, data) in _documents(path)[0].items()
        }
    )


def load_provenance(path: Path) -> Provenance | None:
    """Load the section `provenance` of a recipe's file, with references as `load` resolves them; None without one.

    Raises:
        RecipeError: The file is missing, or a document or the section is invalid.
    """
    found, section = _documents(path)
    if section is None:
        return None
    where = f"{path}: {KEY}"
    written = documents.validate(Provenance, section, where, RecipeError).to_dict()
    data = anchor(written, path.parent, _local(found, path), where)
    if data.get("suite", {}).get("file"):
        data["suite"] = data["suite"] | {"file": _file(data["suite"]["file"], path.parent)}
    return documents.validate(Provenance, data, where, RecipeError)


def is_recipe(reference: str) -> bool:
    """Return whether a reference names a recipe, in a file or of a stage."""
    if reference.startswith(PLACEBO):
        return False
    return reference.startswith(STAGE) or _split(reference)[0].endswith(SUFFIXES)


def load_reference(reference: str, known: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    """Load the recipe that a reference names.

    Args:
        reference: The reference.
        known: Reference → recipe as plain data; these are used instead of reading files.

    Raises:
        RecipeError: See `load`; or the reference is a stage's winner that is not in `known`.
    """
    if known is not None and reference in known:
        return documents.validate(Recipe, dict(known[reference]), reference, RecipeError)
    if reference.startswith(STAGE):
        what = "unknown stage: a winner can be referred to only by later stages of its own search"
        raise RecipeError(reference, what, next="Export the winner and refer to its file")
    path, name = _split(reference)
    return load(Path(os.path.expanduser(path)), name)


def pieces(reference: str, exists: Callable[[str], bool]) -> tuple[str, ...]:
    """Split a reference at '+' into a model and, if there is one, an adapter; a placebo stays in one piece.

    An existing path that contains a '+' is kept in one piece; the longest such path wins.

    Args:
        reference: The reference.
        exists: Returns whether a folder or a recipe of that name exists.

    Raises:
        RecipeError: There are more than `MAX_PIECES`.
    """
    if reference.startswith(PLACEBO):
        return (reference,)
    parts = reference.split("+")
    if len(parts) > MAX_PIECES:
        what = f"the reference has {len(parts)} parts separated by '+'"
        raise RecipeError(shown(reference), what, "MODEL, or MODEL+ADAPTER", "Rename folders whose names contain '+'")
    for end in range(len(parts), 1, -1):
        head = "+".join(parts[:end])
        if exists(head):
            break
    else:
        head, end = parts[0], 1
    return (head, *(pieces("+".join(parts[end:]), exists) if parts[end:] else ()))


def exists(reference: str) -> bool:
    """Return whether a reference is an existing path: a folder, or the file of a recipe."""
    path, name = _split(reference)
    try:
        return not (name and "+" in name) and os.path.exists(os.path.expanduser(path))
    except (OSError, RuntimeError, ValueError):  # too long for a path, or `~` of an unknown user
        return False


def _split(reference: str) -> tuple[str, str | None]:
    """Split a reference into a file and the name of a recipe in it. Folder names may contain '#', recipe names not."""
    path, sign, name = reference.rpartition("#")
    return (path, name) if sign and path.endswith(SUFFIXES) else (reference, None)


def _local(names: Iterable[str | None], path: Path) -> dict[str, str]:
    """Return name of a document → its reference."""
    return {name: f"{os.path.abspath(path)}#{name}" for name in names if name is not None}


def _documents(path: Path) -> tuple[dict[str | None, tuple[str, dict[str, Any]]], Any]:
    """Return name → (location for errors, data without the name) for every document, and the section `provenance`."""
    found: dict[str | None, tuple[str, dict[str, Any]]] = {}
    section: Any = None
    listed = documents.read_all(path, RecipeError)
    for number, data in enumerate(listed, start=1):
        where = str(path) if len(listed) == 1 else f"{path}: document {number}"
        refuse_other_formats(data, where, RecipeError)
        name = data.pop("name", None)
        if name is not None and not _is_name(name):
            allowed = "A name without '#' and '+', by which other recipes of this file refer to this one"
            raise RecipeError(documents.join(where, "name"), f"got {name!r}", allowed)
        if name in found:
            what = (
                f"'{name}' is already the name of an earlier document" if name else "a second document without a name"
            )
            raise RecipeError(documents.join(where, "name"), what, "Names must be unique; one document may have none")
        if KEY in data:
            if name is not None:
                raise RecipeError(documents.join(where, KEY), "in a document with a name", "Only in the one without")
            section = data.pop(KEY)
        found[name] = (where, expand(data, path.parent, where))
    return found, section


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and not {"#", "+"} & set(name)


def anchor(
    data: dict[str, Any], folder: Path, local: Mapping[str, str] | None = None, where: str = ""
) -> dict[str, Any]:
    """Make the relative references of a raw recipe absolute, so that it does not depend on the working directory.

    Args:
        data: The recipe as plain data.
        folder: Folder that relative references start from.
        local: Names that are replaced by references.
        where: The recipe, for errors.

    Raises:
        RecipeError: A reference has too many parts, or a relative one names a recipe's file that is a link out of the
            folder; see `beside`.
    """
    names = local or {}

    def absolute(reference: str) -> str:
        if reference in names:
            return names[reference]
        relative = reference.startswith(("./", "../")) or reference in (".", "..")
        if is_recipe(reference) and not reference.startswith(("/", "~", STAGE)):
            path, name = _split(reference)
            file = beside(path, folder.absolute(), RecipeError)  # links are kept: their targets may change
            return str(file) if name is None else f"{file}#{name}"
        if relative:
            return os.path.normpath(folder.absolute() / reference)
        if reference.startswith("~/"):
            return os.path.expanduser(reference)
        return reference

    def fix(reference: str) -> str:
        try:
            return "+".join(absolute(piece) for piece in pieces(reference, lambda piece: exists(absolute(piece))))
        except RecipeError as exc:
            raise RecipeError(
                f"{where}: {exc.where}" if where else exc.where, exc.what, exc.allowed, exc.next
            ) from None

    anchored: dict[str, Any] = map_references(data, fix)
    if isinstance(sample := anchored.get("sample"), Mapping):
        anchored["sample"] = {key: _file(value, folder) if key in SAMPLED else value for key, value in sample.items()}
    return anchored


def _file(path: Any, folder: Path) -> Any:
    """Return an absolute path; what is not a path is left to the schema."""
    return os.path.normpath(folder.absolute() / os.path.expanduser(path)) if isinstance(path, str) and path else path


def map_references(node: Any, change: Callable[[str], str]) -> Any:
    """Return a raw recipe, or a part of one, with `change` applied to every reference of a model or tokenizer."""
    if isinstance(node, Mapping):
        return {key: _map_value(key, value, change) for key, value in node.items()}
    return [map_references(item, change) for item in node] if isinstance(node, list | tuple) else node


def _map_value(key: str, value: Any, change: Callable[[str], str]) -> Any:
    if _names_a_model(key, value):
        return change(value)
    if key == "model" and isinstance(value, Mapping):  # a search parameter: one of several models
        return {name: _map_choices(name, part, change) for name, part in value.items()}
    if key == LISTS_MODELS and isinstance(value, list | tuple):
        return [change(item) if isinstance(item, str) else map_references(item, change) for item in value]
    return map_references(value, change)


def _map_choices(key: str, value: Any, change: Callable[[str], str]) -> Any:
    """Change the references of a search parameter: its choices and the one it starts from."""
    if key == "choices" and isinstance(value, list | tuple):
        return [change(item) if isinstance(item, str) else item for item in value]
    return change(value) if key == "init" and isinstance(value, str) else value


def _names_a_model(key: str, value: Any) -> bool:
    reserved = key in NAMES_A_TOKENIZER and value in (UNION, BASE)
    return key in NAMES_A_MODEL and isinstance(value, str) and not reserved
