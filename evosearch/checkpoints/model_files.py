"""Files of a model or adapter folder: size limits, and reading that never leaves the folder.

Model folders come from elsewhere: their links, sizes and contents are not trusted, see `evosearch.untrusted`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evosearch import untrusted
from evosearch.errors import CheckpointError

GENERATION = "generation_config.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"

MAX_BYTES = 256 * 2**20  # of a file other than weights; the largest tokenizers have 40 MiB
MAX_FILES = 1000  # in a folder of chat templates
# transformers' maximum length of a tokenizer that has none, which it writes into tokenizer_config.json
UNLIMITED = int(1e30)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model folder.

    Raises:
        CheckpointError: The file is missing, outside of its folder, too large, or not a JSON object within limits.
    """
    large = (UNLIMITED,) if path.name == TOKENIZER_SETTINGS else ()
    return untrusted.read_json(path, CheckpointError, MAX_BYTES, path.parent, large)


def read_text(path: Path) -> str:
    """Read a text file of a model folder.

    Raises:
        CheckpointError: The file is missing, outside of its folder, too large, or not UTF-8.
    """
    return untrusted.read_text(path, CheckpointError, MAX_BYTES, path.parent)


def read_bytes(path: Path, folder: Path) -> bytes:
    """Read a file in a model folder or a subfolder of it.

    Raises:
        CheckpointError: The file is missing, outside of `folder`, or too large.
    """
    return untrusted.read_bytes(path, CheckpointError, MAX_BYTES, folder)


def listed(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return path within the folder → path, of each file that exists under these names; files of subfolders too.

    Special files and broken links are listed, so that reading them is an error instead of a file that is left out.

    Raises:
        CheckpointError: A subfolder is outside of `folder`, or has too many files.
    """
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        if path.is_dir():
            untrusted.locate(path, CheckpointError, folder)
            for number, entry in enumerate(sorted(path.rglob("*"))):  # does not follow links to folders
                if number == MAX_FILES:
                    raise CheckpointError(str(path), f"more than {MAX_FILES} files", next="Remove those not needed")
                if not entry.is_dir():
                    found[entry.relative_to(folder).as_posix()] = entry
        elif untrusted.present(path):
            found[name] = path
    return found


def check(folder: Path, names: Iterable[str]) -> None:
    """Check the files of these names before a library opens them by itself; their contents are not read.

    Raises:
        CheckpointError: A file is not regular, outside of `folder`, or too large.
    """
    for path in listed(folder, names).values():
        with untrusted.open_file(path, CheckpointError, folder) as file:
            size = file.seek(0, 2)
        if size > MAX_BYTES:
            raise CheckpointError(
                str(path), f"larger than {MAX_BYTES >> 20} MiB", next="Check that it is the right file"
            )


def check_contents(folder: Path, names: Iterable[str]) -> None:
    """Check that the JSON files of these names are objects, and that templates are text.

    Raises:
        CheckpointError: A file is damaged, not regular, outside of `folder`, or too large.
    """
    for path in listed(folder, names).values():
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".jinja":
            untrusted.read_text(path, CheckpointError, MAX_BYTES, folder)


def regular(path: Path, folder: Path) -> Path:
    """Return the real path of a file, checked to be a regular one in `folder`, for code that opens it by its path.

    Raises:
        CheckpointError: The file is missing, not regular, or outside of `folder`.
    """
    with untrusted.open_file(path, CheckpointError, folder):
        return untrusted.locate(path, CheckpointError, folder)
