"""A spec as it travels to a cluster: with its suite, and the folders of task files that the suite includes.

What travels has the same search_id there as here. Models do not travel: a folder that the spec names must be one that
every node sees, by an absolute path. Of the folders included, regular files travel; what lies outside of them does not.
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
from evosearch.evaluation.suites.task_files import FUNCTION, code_named, files_named, is_inside
from evosearch.recipe.files import LISTS_MODELS, NAMES_A_MODEL, NAMES_A_TOKENIZER, STAGE, exists, is_recipe, pieces
from evosearch.recipe.tokens import BASE, UNION
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.portable import TOP

SUITE = "suite.yaml"
FILE_MIB, TOTAL_MIB, FILES = 32, 64, 5000  # a package goes through the memory of the cluster's head
LEFT_OUT = ("__pycache__",)  # and all that begins with a dot
ALLOWED = "An absolute path that every node has, a hub id as org/name@revision, zoo:NAME"
MIB = 2**20


@dataclass(frozen=True)
class Pack:
    """A folder to be sent, and what is to be known of it.

    Attributes:
        spec: path of the spec, within the folder.
        shown: path within the folder → what the user calls that file.
        models: absolute paths of models that the nodes must have.
        digest: sha256 (hex) of all files and their names.
    """

    folder: Path
    spec: str
    shown: dict[str, str]
    models: tuple[str, ...]
    notes: tuple[str, ...]
    digest: str


def pack(path: Path, name: str, suite: Suite, folder: Path, diagnostics: Diagnostics) -> Pack:
    """Lay out in `folder` what a spec needs elsewhere. What cannot travel is put on the list of problems.

    Args:
        name: of the spec.
        suite: the spec's, as it was loaded from its file.
        folder: an empty one.
    """
    data = documents.read(path, SpecError)
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
        diagnostics.attempt(lambda: _look_into(Path(given), where, diagnostics, notes))  # noqa: B023
    if included:
        written["include"] = list(included)
    top.mkdir(exist_ok=True)
    (top / SUITE).write_text(documents.dump(written), encoding="utf-8")
    (top / f"{name}.yaml").write_text(documents.dump(data | {"suite": SUITE}), encoding="utf-8")
    shown = {f"{TOP}/{place}": given for place, given in included.items()}
    shown |= {f"{TOP}/{SUITE}": str(source), f"{TOP}/{name}.yaml": str(path)}
    return Pack(folder, f"{TOP}/{name}.yaml", shown, models, tuple(dict.fromkeys(notes)), _digest(folder))


def _place(folder: Path, beside: Path, index: int) -> str:
    """Where an included folder lies in the pack: below the suite's file as it does here, where it does."""
    own = os.path.relpath(folder, os.path.abspath(beside))
    if own == ".":
        return "beside"
    return f"below/{own}" if not own.startswith("..") else f"elsewhere/{index}"


# --- models ---------------------------------------------------------------------------------------------------------


def _references(data: Mapping[str, Any], file: str, diagnostics: Diagnostics) -> tuple[str, ...]:
    """The absolute paths that a spec names; what means something on this machine alone is a problem."""
    absolute: list[str] = []
    for where, reference in _named(data, f"{file}: "):
        for piece in pieces(reference, exists):
            problem = _only_here(piece)
            if problem is not None:
                what, next = problem
                diagnostics.add(SpecError(where, f"got '{reference}': {what}", ALLOWED, next))
            elif piece.startswith("/"):
                absolute.append(piece)
    return tuple(dict.fromkeys(absolute))


def _only_here(reference: str) -> tuple[str, str] | None:
    """Why a reference means nothing elsewhere, and what to do; None where it does."""
    if reference.startswith(("/", STAGE)):
        return None
    if is_recipe(reference):
        return "recipe files do not travel", "Write that merge to a folder every node sees, or make it a stage"
    if reference.startswith("~"):
        return "the home folder is another one there", "Give the path in full"
    if reference in (".", "..") or reference.startswith(("./", "../")):
        return "models do not travel", "Put it where every node sees it, and give the path in full"
    if ":" not in reference and os.path.isdir(reference):
        return "a folder of this name is here, which does not travel", "Give its path in full, or run from elsewhere"
    return None


def _named(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Where each reference to a model stands in a spec, and the reference."""
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
    """How much is packed so far."""

    def __init__(self, where: str) -> None:
        self._where, self._bytes, self._files = where, 0, 0

    def add(self, path: Path) -> None:
        """Raises:
        SuiteError: that is too much for a package.
        """
        size = path.stat().st_size
        self._bytes, self._files = self._bytes + size, self._files + 1
        if size > FILE_MIB * MIB:
            what, allowed = f"{path} has {size / MIB:.0f} MiB", f"Files of up to {FILE_MIB} MiB travel"
            next = "Put it where every node sees it, and name it in the task's YAML by its absolute path"
            raise SuiteError(self._where, what, allowed, next)
        if self._bytes > TOTAL_MIB * MIB or self._files > FILES:
            what = f"its folders hold more than {TOTAL_MIB} MiB, or more than {FILES} files"
            raise SuiteError(self._where, what, next="Include folders that hold task files and their data, and no more")


def _copy(source: Path, target: Path, where: str, size: _Size) -> None:
    """Raises:
    SuiteError: a link leads out of the folder, or there is too much in it.
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
                what = f"{path} is a link to {os.readlink(path)}, which does not travel with it"
                raise SuiteError(where, what, "Regular files, and links to files in the same folder", "Copy it there")
            size.add(path)
            shutil.copyfile(path, here / name)


def _left_out(name: str) -> bool:
    return name.startswith(".") or name in LEFT_OUT or name.endswith(".pyc")


def _look_into(source: Path, where: str, diagnostics: Diagnostics, notes: list[str]) -> None:
    """Find what the task files of a folder name outside of it. What is nowhere is for lm-eval to say."""
    root = source.resolve()
    for path in sorted(root.rglob("*.yaml")):
        if any(_left_out(part) for part in path.relative_to(root).parts) or not path.is_file():
            continue
        code = {str(root), os.path.realpath(library_folder())}
        for key, named, file in code_named(path):
            if key == FUNCTION and not is_inside(file, code):
                what = f"{path} names {named} under {key}, which is in {file} and does not travel"
                allowed = "Python files beside or below the task's, in the same included folder; or installed modules"
                diagnostics.add(SuiteError(where, what, allowed, "Move it there"))
        for key, named in files_named(path):
            if os.path.isabs(named):
                notes.append(f"{path}: {key}: {named} does not travel: every node must have it")
            elif "://" not in named and (lies := _lies(named, path.parent, root, key)) is not None:
                what = f"{path} names {named} under {key}, which is {lies} and does not travel"
                allowed = "Files beside or below the task's, in the same included folder; or absolute paths"
                diagnostics.add(SuiteError(where, what, allowed, "Move it there"))


def _lies(named: str, folder: Path, root: Path, key: str) -> str | None:
    """Where the file of a relative name is, if that is outside of the included folder; None of what is not."""
    beside = folder / named
    if key != "dataset_path" and beside.exists():
        return None if beside.resolve().is_relative_to(root) else str(beside.resolve())
    return str(Path(named).resolve()) if key != "include" and glob.glob(named) else None


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode("utf-8", "surrogatepass"))
        found.update(path.read_bytes())
    return found.hexdigest()


def renamed(text: str, shown: Mapping[str, str]) -> str:
    """A message of the cluster's in the names of the files here."""
    for packed in sorted(shown, key=len, reverse=True):
        text = text.replace(packed, shown[packed])
    return text


def problem_here(problem: Mapping[str, Any], shown: Mapping[str, str]) -> InputError:
    """A problem as `check --json` prints it there, as an error about the files here."""
    told = (problem.get(key) and renamed(str(problem[key]), shown) for key in ("where", "what", "allowed", "next"))
    where, what, allowed, next = told
    return InputError(where or "", what or "", allowed, next)
