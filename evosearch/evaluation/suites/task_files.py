"""What task files name beside themselves: data, other task files, and code; and which code a suite may bring along.

lm-eval runs what a `!function` names, in a task's file or in one that it includes. A suite trusts its own folder, the
folders that whoever runs it names in $EVOSEARCH_TASKS, and lm-eval's own library. A `!function` that is no file beside
its YAML is for Python to import: whoever installed a module has trusted it.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.suites.library import library_folder

TASKS = "EVOSEARCH_TASKS"  # folders that task code may come from, beside a suite's own
FUNCTION, INCLUDE = "!function", "include"
_Loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.FullLoader  # what lm-eval reads with


def task_roots(source: Path) -> list[str]:
    """The folders that task code may come from, of a suite in the file `source`; lm-eval's library not among them."""
    named = [os.path.expanduser(root) for root in os.environ.get(TASKS, "").split(os.pathsep) if root]
    return [os.path.abspath(root) for root in (str(source.parent), *named)]


def check_folder(folder: str, roots: Sequence[str], where: str) -> None:
    """Raises:
    SuiteError: the folder lies outside of those that task code may come from. Links are not followed: whoever put
        one into such a folder has named what it leads to.
    """
    if not any(Path(folder).is_relative_to(root) for root in roots):
        what = f"{folder} lies outside of the suite's own folder, and task files are code"
        next = f"To trust it, name it: {TASKS}={folder}"
        raise SuiteError(where, what, f"Folders below {', or '.join(roots)}", next)


def check_code(folder: str, roots: Sequence[str]) -> None:
    """Args:
        folder: of task files, one that `check_folder` takes.

    Raises:
        SuiteError: a task file in it, or one that such a file includes, names a file outside of `roots` that lm-eval
            would run, or include. What is nowhere is for lm-eval to say.
    """
    library = os.path.realpath(library_folder())
    trusted = {place for root in (*roots, folder) for place in (root, os.path.realpath(root))} | {library}
    waiting, seen = sorted(Path(folder).glob("**/*.yaml")), set()
    while waiting:
        path = waiting.pop().resolve()
        if path in seen or path.is_relative_to(library):
            continue
        seen.add(path)
        for key, named, file in code_named(path):
            if not is_inside(file, trusted):
                what = f"got '{named}': {file} lies outside of the suite's own folder, and task files are code"
                next = f"To trust it, name its folder: {TASKS}={file.parent}"
                allowed = f"Files below {', or '.join(roots)}, or of lm-eval's library"
                raise SuiteError(f"{path}: {key}", what, allowed, next)
            if key == INCLUDE:
                waiting.append(file)


def is_inside(file: Path, folders: set[str]) -> bool:
    """Whether a file lies in one of some folders. A link in one of them counts as what it leads to, `..` does not."""
    places = [file.resolve()] if ".." in file.parts else [file, file.resolve()]
    return any(place.is_relative_to(folder) for place in places for folder in folders)


def code_named(path: Path) -> Iterator[tuple[str, str, Path]]:
    """(key, text, file) of each YAML that a task's file includes, and of each Python file that its functions are in.

    Found as lm-eval finds them, by the same loader. Where it fails, lm-eval has run what stands before: that counts.
    """
    functions: list[str] = []

    class Loader(_Loader):
        pass

    Loader.add_constructor(FUNCTION, lambda loader, node: functions.append(loader.construct_scalar(node)))
    try:
        data = yaml.load(path.read_bytes(), Loader)  # noqa: S506 - lm-eval's own loader, which makes plain data
    except Exception:  # whatever it is, lm-eval says it, if the suite uses this file
        data = None
    for named in functions:
        module = str(named).rpartition(".")[0]
        file = path.parent / f"{module.replace('.', '/')}.py"
        if module and os.path.exists(file):  # else Python imports it
            yield FUNCTION, named, file
    included = data.get(INCLUDE) if isinstance(data, dict) else None
    for text in included if isinstance(included, list) else [included]:
        if isinstance(text, str):
            yield INCLUDE, text, path.parent / text


def files_named(path: Path) -> Iterator[tuple[str, str]]:
    """(key, text) of whatever a task's YAML names data and YAML files by. Only the syntax is looked at."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OSError):  # which lm-eval will say, if the suite uses it
        return
    yield from _texts(root, None)


def _texts(node: yaml.Node | None, key: str | None) -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            own = name.value if name.value in ("data_files", "data_dir", "dataset_path", INCLUDE) else key
            yield from _texts(value, own)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _texts(item, key)
    elif isinstance(node, yaml.ScalarNode) and key is not None and node.tag == "tag:yaml.org,2002:str":
        yield key, node.value
