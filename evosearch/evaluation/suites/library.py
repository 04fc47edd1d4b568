"""Lookup of lm-eval's tasks, groups and tags without building lm-eval's full index.

Indexing the full library takes lm-eval 14 to 25 seconds. A suite uses a handful of tasks: scanning the YAML files for
their names takes a second and finds their folders, and only those folders are indexed.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from evosearch.evaluation.suites.task_yaml import read_task_yaml

_NAME = re.compile(rb"^['\"]?(task|group)['\"]?:[ \t]*['\"]?([^\s'\"#\[\]{}]+)", re.MULTILINE)
_TAG = re.compile(
    rb"^['\"]?tag['\"]?:[ \t]*(\[[^\]]*\]|[^\s#\[][^\n#]*|(?:#[^\n]*)?(?:\n[ \t]*-[^\n]*)+)", re.MULTILINE
)
_WORD = re.compile(rb"[^\s,\[\]'\"]+")


@cache
def library_files() -> Mapping[str, Path]:
    """Name of a task or group of lm-eval's library → the YAML file that defines it."""
    return {name: path for (_, name), path in reversed(_library()[0].items())}


@cache
def library_tags() -> Mapping[str, tuple[Path, ...]]:
    """Tag of lm-eval's library → the folders that contain tasks with this tag."""
    return {tag: tuple(dict.fromkeys(path.parent for path in paths)) for tag, paths in _library()[1].items()}


Found = tuple[dict[tuple[str, str], Path], dict[str, list[Path]]]  # (kind, name) → file; tag → files


class TaskNames:
    """Names of tasks, groups and tags in the given folders and in lm-eval's library; each is scanned at most once."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._own = [_scan(folder, "**/*.yaml", read_task_yaml) for folder in folders]

    def is_group(self, name: str) -> bool:
        """Return whether a name is a group or tag. A task takes precedence over a group of the same name."""
        for found in self._own:
            if (kind := _kind(name, found)) is not None:
                return kind == "group"
        return _kind(name, _library()) == "group"


def _kind(name: str, found: Found) -> str | None:
    names, tags = found
    if ("task", name) in names:
        return "task"
    return "group" if ("group", name) in names or name in tags else None


@cache
def library_folder() -> Path:
    """Return the folder of lm-eval's task library."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None, "lm-eval is a dependency"
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


@cache
def _library() -> Found:
    return _scan(library_folder(), "*/**/*yaml")


def _scan(root: Path, pattern: str, read: Callable[[Path], bytes] = Path.read_bytes) -> Found:
    """Names and tags that YAML files define at the start of a line."""
    names: dict[tuple[str, str], Path] = {}
    tags: dict[str, list[Path]] = {}
    for path in sorted(root.glob(pattern)):
        text = read(path)
        for match in _NAME.finditer(text):
            if path.suffix == ".yaml":  # other suffixes are templates, not tasks
                names.setdefault((_text(match[1]), _text(match[2])), path)
        for tag in _tags(text):
            tags.setdefault(tag, []).append(path)
    return names, tags


def _tags(text: bytes) -> Iterator[str]:
    for match in _TAG.finditer(text):
        for line in match[1].split(b"\n"):
            for word in _WORD.findall(line.split(b" #")[0].lstrip(b" \t-")):
                yield _text(word)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
