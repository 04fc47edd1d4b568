"""Results of the board: one JSON line per finished cell, which is not run again."""

import fcntl
import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.board.cells import Key
from benchmarks.board.entries import Json
from evosearch.errors import InputError


def read(file: Path) -> list[Json]:
    """The last result of every cell, in the order in which cells were first finished.

    Raises:
        InputError: A line is not a result.
    """
    if not file.is_file():
        return []
    found: dict[Key, Json] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            result = json.loads(line)
            found[key_of(result)] = result
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}: line {number}", "not a result of the board", next="Remove this line") from None
    return list(found.values())


def append(file: Path, result: Json) -> None:
    """Append one result; several processes may write to the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write(json.dumps(result) + "\n")


def key_of(result: Json) -> Key:
    """The key of a result's cell."""
    return result["problem"], result["method"], result["optimizer"], result["seed"], result["items"]


def finished(results: Iterable[Json], key: Key, digest: str) -> bool:
    """Whether a cell has a result with the same settings."""
    return any(key_of(result) == key and result["digest"] == digest for result in results)
