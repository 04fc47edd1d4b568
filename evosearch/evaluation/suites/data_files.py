"""Data files of tasks: their places, and the place of damage in them.

lm-eval resolves relative paths against the working directory, which differs between a shell and a worker; here they
start at the folder of the task's YAML.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evosearch.errors import SuiteError
from evosearch.evaluation.suites.data_sizes import check_sizes, matches
from evosearch.untrusted import boundary, open_file, reason

LONGEST_LINE = 2**26  # bytes of a line of JSON
WHOLE = 2**26  # bytes of a file that may be a single JSON document
ONE_A_LINE = "One JSON object a line"
READERS = ("json", "csv", "parquet", "arrow", "text")  # as dataset_path: datasets' own readers, not folders


def with_data_files(where: str, name: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a task's or group's config with full paths of data files, including members defined inline.

    Args:
        where: The suite's key, for errors.
        name: Name of the task, for errors.
        config: The config.
        folder: Folder of its YAML.

    Raises:
        SuiteError: A data file is missing, or not a regular file, or the data are too large; see `check_sizes`.
    """
    placed = dict(config)
    kwargs = config.get("dataset_kwargs")
    named = kwargs.get("data_files") if isinstance(kwargs, dict) else None
    if named is not None:
        placed["dataset_kwargs"] = {**config["dataset_kwargs"], "data_files": _placed(where, name, named, folder)}
    check_sizes(where, name, _local(placed))
    if isinstance(config.get("task"), list):
        placed["task"] = [
            with_data_files(where, name, item, folder) if isinstance(item, dict) else item for item in config["task"]
        ]
    return placed


def check_json_lines(config: Mapping[str, Any], where: str) -> None:
    """Find the damage in the data files of a task that could not be loaded; other files than JSON lines pass.

    Args:
        config: The task's config, with full paths.
        where: The suite's key, for errors.

    Raises:
        SuiteError: A line is not a JSON object, or a file has none.
    """
    kwargs = config.get("dataset_kwargs")
    if config.get("dataset_path") != "json" or not isinstance(kwargs, Mapping) or kwargs.get("field"):
        return
    for file in _files(kwargs.get("data_files")):
        if (
            os.path.exists(file)
            and not file.endswith((".gz", ".zst", ".xz", ".bz2", ".zip"))
            and not _is_document(file)
        ):
            _check_lines(file, f"It has the data of a task of {where}")


def _is_document(file: str) -> bool:
    """Return whether a file is a single JSON document, such as a list of objects."""
    with open_file(Path(file), SuiteError) as opened:
        data = opened.read(WHOLE + 1)
    try:
        return len(data) <= WHOLE and bool(json.loads(data))
    except (ValueError, RecursionError):
        return False


def _check_lines(file: str, next: str) -> None:
    count = 0
    with open_file(Path(file), SuiteError) as opened:
        number = 0
        while line := opened.readline(LONGEST_LINE + 1):
            number += 1
            place = f"{file}:{number}"
            if len(line) > LONGEST_LINE:
                raise SuiteError(place, f"longer than {LONGEST_LINE >> 20} MiB", ONE_A_LINE, next)
            if not line.strip():
                continue
            with boundary(place, SuiteError, "not JSON", next):
                try:
                    row = json.loads(line.decode("utf-8"))
                except UnicodeDecodeError:
                    raise SuiteError(place, "not UTF-8 text", ONE_A_LINE, next) from None
                except (ValueError, RecursionError) as exc:
                    raise SuiteError(place, f"not JSON: {reason(exc)}", ONE_A_LINE, next) from None
            if not isinstance(row, Mapping):
                raise SuiteError(place, f"got a {type(row).__name__}", ONE_A_LINE, next)
            count += 1
    if not count:
        raise SuiteError(file, "has no documents", ONE_A_LINE, next)


def _local(config: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the local files that datasets would read for a task's config: by name, by pattern, or in a folder."""
    kwargs = config.get("dataset_kwargs")
    options = kwargs if isinstance(kwargs, Mapping) else {}
    for file in _files(options.get("data_files")):
        if "://" not in file:
            yield from matches(os.path.join(str(options.get("data_dir") or ""), file))
    for folder in (options.get("data_dir"), config.get("dataset_path")):
        if (
            isinstance(folder, str)
            and folder not in READERS
            and os.path.isdir(folder)
            and not options.get("data_files")
        ):
            yield from matches(folder)


def _files(named: Any) -> Iterator[str]:
    if isinstance(named, Mapping | list):
        for each in named.values() if isinstance(named, Mapping) else named:
            yield from _files(each)
    elif isinstance(named, str):
        yield named


def _placed(where: str, name: str, named: Any, folder: Path) -> Any:
    if isinstance(named, dict):
        return {split: _placed(where, name, files, folder) for split, files in named.items()}
    if isinstance(named, list):
        return [_placed(where, name, file, folder) for file in named]
    return _data_file(where, name, str(named), folder)


def _data_file(where: str, name: str, file: str, folder: Path) -> str:
    if "://" in file or any(sign in file for sign in "*?["):
        return file  # a remote file or a pattern, resolved by datasets
    for path in (Path(file), folder / file):
        if path.is_file():
            return file if path == Path(file) else str(path)
        if path.exists():
            raise SuiteError(where, f"data file {path} of '{name}' is not a regular file", "A file, or a link to one")
    raise SuiteError(where, f"data file {file} of '{name}' not found", f"Searched . and {folder}")
