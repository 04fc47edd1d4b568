"""Packing of a spec for upload to a cluster, with its suite and the task files and prompts that the suite names.

The packed spec has the same search_id as the original. Models are not uploaded: the spec must name them by absolute
paths that exist on every node, or by references. All regular files in included folders are uploaded.
"""

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import InputError, SpecError, SuiteError
from evosearch.evaluation.suites.library import library_folder
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.suites.task_files import FUNCTION, is_inside, referenced_code, referenced_files
from evosearch.evaluation.suites.task_yaml import read_task_yaml
from evosearch.recipe.files import LISTS_MODELS, NAMES_A_MODEL, NAMES_A_TOKENIZER, STAGE, exists, is_recipe, pieces
from evosearch.recipe.run_checkpoints import expand
from evosearch.recipe.tokens import BASE, UNION
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.portable import TOP
from evosearch.untrusted import beside

SUITE = "suite.yaml"
FILE_MIB, TOTAL_MIB, FILES = 32, 64, 5000  # limits, since the cluster's head keeps the package in memory
LEFT_OUT = ("__pycache__",)  # and names that begin with a dot
ALLOWED = "An absolute path on every node, a hub id such as org/name@revision, zoo:NAME"
MIB = 2**20


@dataclass(frozen=True)
class Pack:
    """A folder to upload.

    Attributes:
        folder: The folder.
        spec: Path of the spec within the folder.
        shown: Path within the folder → the original path, for messages.
        models: Absolute paths of models that must exist on every node.
        notes: Notes for the user.
        digest: sha256 (hex) of all files and their names.
    """

    folder: Path
    spec: str
    shown: dict[str, str]
    models: tuple[str, ...]
    notes: tuple[str, ...]
    digest: str


def pack(path: Path, name: str, suite: Suite, folder: Path, diagnostics: Diagnostics) -> Pack:
    """Copy everything that a spec needs into a folder.

    Args:
        path: The spec.
        name: The spec's name.
        suite: The spec's suite, as loaded from its file.
        folder: An empty folder.
        diagnostics: Collects a problem for everything that cannot be uploaded.
    """
    data = _with_checkpoints(documents.read(path, SpecError), path)
    models = _references(data, str(path), diagnostics)
    source = Path(suite.source)
    top = folder / TOP
    written = documents.read(source, SuiteError)
    included = {}
    notes: list[str] = []
    size = _Size(str(source))
    for index, given in enumerate(suite.include):
        place = _place(Path(given), source.parent, index)
        where = documents.join(str(source), "include", index)
        included[place] = given
        diagnostics.attempt(lambda: _copy(Path(given), top / place, where, size))  # noqa: B023
        diagnostics.attempt(lambda: _check_task_files(Path(given), where, diagnostics, notes))  # noqa: B023
    if included:
        written["include"] = list(included)
    top.mkdir(exist_ok=True)
    included |= _prompts(written["tasks"], source, top, size, diagnostics)
    (top / SUITE).write_text(documents.dump(written), encoding="utf-8")
    (top / f"{name}.yaml").write_text(documents.dump(data | {"suite": SUITE}), encoding="utf-8")
    shown = {f"{TOP}/{place}": given for place, given in included.items()}
    shown |= {f"{TOP}/{SUITE}": str(source), f"{TOP}/{name}.yaml": str(path)}
    return Pack(folder, f"{TOP}/{name}.yaml", shown, models, tuple(dict.fromkeys(notes)), _digest(folder))


def _prompts(
    tasks: list[dict[str, Any]], source: Path, top: Path, size: "_Size", diagnostics: Diagnostics
) -> dict[str, str]:
    """Copy files of prompts and name the copies in the suite's tasks; return path in the pack → original path."""
    copied = {}
    for index, task in enumerate(tasks):
        if "prompts" in task:
            path = beside(task["prompts"], source.parent, SuiteError)
            task["prompts"] = place = f"prompts/{index}/{path.name}"
            copied[place] = str(path)
            diagnostics.attempt(lambda: size.add(path))  # noqa: B023
            (top / place).parent.mkdir(parents=True)
            shutil.copyfile(path, top / place)
    return copied


def _place(folder: Path, suite_folder: Path, index: int) -> str:
    """Return an included folder's path in the pack: relative to the suite's folder if it is inside of that."""
    own = os.path.relpath(folder, os.path.abspath(suite_folder))
    if own == ".":
        return "same"
    return f"below/{own}" if not own.startswith("..") else f"elsewhere/{index}"


# --- models ---------------------------------------------------------------------------------------------------------


def _with_checkpoints(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a spec in which patterns of checkpoints are replaced by the models that they stand for on this machine."""
    if isinstance(data.get("recipe"), Mapping):
        data = data | {"recipe": expand(data["recipe"], path.parent, f"{path}: recipe")}
    if isinstance(data.get("stages"), list):
        stages = [_with_checkpoints(dict(one), path) if isinstance(one, Mapping) else one for one in data["stages"]]
        data = data | {"stages": stages}
    return data


def _references(data: Mapping[str, Any], file: str, diagnostics: Diagnostics) -> tuple[str, ...]:
    """Return the absolute model paths in a spec; report references that are valid on this machine only."""
    absolute: list[str] = []
    for where, reference in _named(data, f"{file}: "):
        for piece in pieces(reference, exists):
            problem = _local_only(piece)
            if problem is not None:
                what, next = problem
                diagnostics.add(SpecError(where, f"got '{reference}': {what}", ALLOWED, next))
            elif piece.startswith("/"):
                absolute.append(piece)
    return tuple(dict.fromkeys(absolute))


def _local_only(reference: str) -> tuple[str, str] | None:
    """Return why a reference is valid on this machine only, and what to do; None if it is valid on a cluster."""
    if reference.startswith(("/", STAGE)):
        return None
    if is_recipe(reference):
        return "recipe files are not uploaded", "Export the merge to a folder on every node, or make it a stage"
    if reference.startswith("~"):
        return "the home folder differs on the cluster", "Give the full path"
    if reference in (".", "..") or reference.startswith(("./", "../")):
        return "models are not uploaded", "Copy it to every node or a shared folder, and give the full path"
    if ":" not in reference and os.path.isdir(reference):
        return "this is also a local folder, which is not uploaded", "Give its full path, or submit from another folder"
    return None


def _named(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield location and value of each model reference in a spec."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = documents.join(where, str(key))
            reserved = key in NAMES_A_TOKENIZER and value in (UNION, BASE)
            if key in NAMES_A_MODEL and isinstance(value, str) and not reserved:
                yield place, value
            elif key == LISTS_MODELS and isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, str):
                        yield documents.join(place, index), item
                    else:
                        yield from _named(item, documents.join(place, index))
            else:
                yield from _named(value, place)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _named(item, documents.join(where, index))


# --- folders --------------------------------------------------------------------------------------------------------


class _Size:
    """Size of the pack so far."""

    def __init__(self, where: str) -> None:
        self._where, self._bytes, self._files = where, 0, 0

    def add(self, path: Path) -> None:
        """Count a file.

        Raises:
            SuiteError: The pack is too large.
        """
        size = path.stat().st_size
        self._bytes, self._files = self._bytes + size, self._files + 1
        if size > FILE_MIB * MIB:
            what, allowed = f"{path} has {size / MIB:.0f} MiB", f"Files of up to {FILE_MIB} MiB"
            next = "Copy it to every node or a shared folder, and name it in the task's YAML by its absolute path"
            raise SuiteError(self._where, what, allowed, next)
        if self._bytes > TOTAL_MIB * MIB or self._files > FILES:
            what = f"its folders contain more than {TOTAL_MIB} MiB, or more than {FILES} files"
            raise SuiteError(self._where, what, next="Include folders with task files and their data only")


def _copy(source: Path, target: Path, where: str, size: _Size) -> None:
    """Copy an included folder.

    Raises:
        SuiteError: A link leads out of the folder, or the pack becomes too large.
    """
    root = source.resolve()
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not _left_out(name))
        here = target / os.path.relpath(folder, root)
        here.mkdir(parents=True, exist_ok=True)
        for name in [*files, *(name for name in folders if (Path(folder) / name).is_symlink())]:
            path = Path(folder) / name
            if _left_out(name) or not (path.is_symlink() or path.is_file()):
                continue
            if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root)):
                what = f"{path} is a link to {os.readlink(path)}, which is not uploaded"
                raise SuiteError(where, what, "Regular files, and links within the same folder", "Copy the file there")
            size.add(path)
            shutil.copyfile(path, here / name)


def _left_out(name: str) -> bool:
    return name.startswith(".") or name in LEFT_OUT or name.endswith(".pyc")


def _check_task_files(source: Path, where: str, diagnostics: Diagnostics, notes: list[str]) -> None:
    """Report files outside of a folder that its task files name. lm-eval reports missing files."""
    root = source.resolve()
    for path in sorted(root.rglob("*.yaml")):
        if any(_left_out(part) for part in path.relative_to(root).parts) or not path.is_file():
            continue
        code = {str(root), os.path.realpath(library_folder())}
        for key, named, file in referenced_code(path, read_task_yaml(path)):
            if key == FUNCTION and not is_inside(file, code):
                what = f"{path} names {named} under {key}, which is in {file} and is not uploaded"
                allowed = "Python files next to or below the task's, in the same included folder; or installed modules"
                diagnostics.add(SuiteError(where, what, allowed, "Move it there"))
        for key, named in referenced_files(path):
            if os.path.isabs(named):
                notes.append(f"{path}: {key}: {named} is not uploaded: every node must have it")
            elif "://" not in named and (outside := _outside(named, path.parent, root, key)) is not None:
                what = f"{path} names {named} under {key}, which is {outside} and is not uploaded"
                allowed = "Files next to or below the task's, in the same included folder; or absolute paths"
                diagnostics.add(SuiteError(where, what, allowed, "Move it there"))


def _outside(named: str, folder: Path, root: Path, key: str) -> str | None:
    """Return the path of a relative file name if it is outside of the included folder, else None."""
    file = folder / named
    if key != "dataset_path" and file.exists():
        return None if file.resolve().is_relative_to(root) else str(file.resolve())
    return str(Path(named).resolve()) if key != "include" and glob.glob(named) else None


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode("utf-8", "surrogatepass"))
        found.update(path.read_bytes())
    return found.hexdigest()


def local_names(text: str, shown: Mapping[str, str]) -> str:
    """Replace the paths of packed files in a message from the cluster by the original paths."""
    for packed in sorted(shown, key=len, reverse=True):
        text = text.replace(packed, shown[packed])
    return text


def local_problem(problem: Mapping[str, Any], shown: Mapping[str, str]) -> InputError:
    """Convert a problem of `check --json` on the cluster to an error about the original files."""
    fields = (
        problem.get(key) and local_names(str(problem[key]), shown) for key in ("where", "what", "allowed", "next")
    )
    where, what, allowed, next = fields
    return InputError(where or "", what or "", allowed, next)
