"""Files that task YAMLs refer to (data, other YAMLs, code), and the check that their code comes from trusted folders.

lm-eval executes every `!function` of a task's file and of the files that it includes. Code is trusted in the suite's
own folder, in the folders listed in $EVOSEARCH_TASKS, and in lm-eval's library. A `!function` without a file next to
its YAML is imported by Python from installed modules, which are trusted.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.suites.library import library_folder
from evosearch.evaluation.suites.task_yaml import read_task_yaml
from evosearch.untrusted import present

TASKS = "EVOSEARCH_TASKS"  # environment variable: additional trusted folders
FUNCTION, INCLUDE, METRIC = "!function", "include", "metric"
_Loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.FullLoader  # the loader that lm-eval uses


def task_roots(source: Path) -> list[str]:
    """Return the trusted folders of a suite file's task code, apart from lm-eval's library."""
    named = [os.path.expanduser(root) for root in os.environ.get(TASKS, "").split(os.pathsep) if root]
    return [os.path.abspath(root) for root in (str(source.parent), *named)]


def check_folder(folder: str, roots: Sequence[str], where: str) -> None:
    """Check that a folder is inside the trusted folders.

    Symbolic links are not followed: a link inside a trusted folder makes its target trusted.

    Raises:
        SuiteError: The folder is outside of the trusted folders.
    """
    if not any(Path(folder).is_relative_to(root) for root in roots):
        what = f"{folder} is outside of the suite's folder, and task files are code"
        next = f"To trust it, set {TASKS}={folder}"
        raise SuiteError(where, what, f"Folders below {', or '.join(roots)}", next)


def check_code(folder: str, roots: Sequence[str]) -> None:
    """Check that the task files of a folder, and the files that they include, only use trusted code.

    Missing files are left for lm-eval to report. All others are regular files of bounded size and depth; see
    `read_task_yaml`.

    Args:
        folder: Folder with task YAMLs that `check_folder` accepts.
        roots: Trusted folders.

    Raises:
        SuiteError: A task file would run or include a file outside of `roots`, or cannot be read safely.
    """
    library = os.path.realpath(library_folder())
    trusted = {place for root in (*roots, folder) for place in (root, os.path.realpath(root))} | {library}
    waiting, seen = sorted(Path(folder).glob("**/*.yaml")), set()
    while waiting:
        named_file = waiting.pop()
        path = Path(os.path.realpath(named_file))
        if path in seen or path.is_relative_to(library) or not present(path):
            continue
        seen.add(path)
        for key, named, file in referenced_code(path, read_task_yaml(named_file)):
            if key == METRIC and not file.exists():
                what = f"got '{named}': a metric of the hub is a program, which would be downloaded and run"
                raise SuiteError(
                    f"{path}: {key}", what, "A metric of lm-eval, a file of the suite's folder, or !function"
                )
            if not is_inside(file, trusted):
                what = f"got '{named}': {file} is outside of the suite's folder, and task files are code"
                next = f"To trust its folder, set {TASKS}={file.parent}"
                allowed = f"Files below {', or '.join(roots)}, or in lm-eval's library"
                raise SuiteError(f"{path}: {key}", what, allowed, next)
            if key == INCLUDE:
                waiting.append(file)


def is_inside(file: Path, folders: set[str]) -> bool:
    """Return whether a file is in one of the folders; a link inside a folder is accepted, a path with `..` is not."""
    places = [file.resolve()] if ".." in file.parts else [file, file.resolve()]
    return any(place.is_relative_to(folder) for place in places for folder in folders)


def referenced_code(path: Path, content: bytes) -> Iterator[tuple[str, str, Path]]:
    """Yield (key, text, file) of each YAML that a task file includes, and of the Python files of functions and metrics.

    lm-eval hands a metric that it does not know to the evaluate library, which runs a file or folder of that name, or a
    program of the hub; a name without a slash is one of lm-eval's, or of the evaluate library's own.

    The file is parsed by lm-eval's own loader. If parsing fails, everything before the error is reported, since lm-eval
    would have executed it.
    """
    functions: list[str] = []

    class Loader(_Loader):
        pass

    Loader.add_constructor(FUNCTION, lambda loader, node: functions.append(loader.construct_scalar(node)))
    try:
        data = yaml.load(content, Loader)  # noqa: S506 - lm-eval's own loader, which returns plain data
    except Exception:  # lm-eval reports the error if the suite uses this file
        data = None
    for named in functions:
        module = str(named).rpartition(".")[0]
        file = path.parent / f"{module.replace('.', '/')}.py"
        if module and os.path.exists(file):  # otherwise Python imports it
            yield FUNCTION, named, file
    for named in _metrics(data):
        if "/" in named or named.endswith(".py") or os.path.isfile(f"{named}/{named}.py"):
            yield METRIC, named, Path(os.path.abspath(named))
    included = data.get(INCLUDE) if isinstance(data, dict) else None
    for text in included if isinstance(included, list) else [included]:
        if isinstance(text, str):
            yield INCLUDE, text, path.parent / text


def _metrics(node: Any) -> Iterator[str]:
    """Yield the names of metrics at any depth: members of a group may be defined inline."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == METRIC and isinstance(value, str):
                yield value
            yield from _metrics(value)
    elif isinstance(node, list):
        for item in node:
            yield from _metrics(item)


def referenced_files(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of every data or YAML file that a task's YAML mentions. Only the syntax is examined."""
    try:
        root = yaml.compose(read_task_yaml(path), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):  # lm-eval reports it if the suite uses this file
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
