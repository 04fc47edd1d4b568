"""Reading of files from untrusted sources: models, adapters, recipes, suites, data.

A file is read only if it is regular, inside its root, and not larger than a limit. JSON has bounded integers and a
bounded depth. `boundary` turns any exception of a parser or a library into one input error.
"""

import json
import math
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from evosearch.errors import EvosearchError, InputError

MAX_INTEGER = 2**63  # integers of JSON are smaller in magnitude
MAX_DIGITS = 19  # of an integer below MAX_INTEGER
MAX_DEPTH = 64  # levels of nesting of JSON; configs and tokenizers need ten
MAX_PATH = 1000  # characters of a path in a message
CAREFULLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe without a writer does not block
SNAPSHOTS, BLOBS = "snapshots", "blobs"  # of the hub's cache: files in snapshots/COMMIT are links into blobs


def present(path: Path) -> bool:
    """Return whether a path exists, also as a broken link or a special file, which reading it then rejects."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a zero byte
        return False


def locate(path: Path, error: type[InputError], root: Path | None = None) -> Path:
    """Return the real path of a file or folder.

    Args:
        path: The file.
        error: Class of the error to raise.
        root: Folder that a link may not leave, except for the blobs of the hub's cache if it is one of its snapshots.

    Raises:
        error: The file does not exist, or is outside of `root`.
    """
    with _readable(path, error):
        real = path.resolve(strict=True)
        if root is not None and not any(real.is_relative_to(folder) for folder in _allowed(root.resolve())):
            what = f"leads to {real}, outside of {root}"
            raise error(str(path), what, "Files in this folder", "Copy the file into the folder if you trust it")
    return real


def beside(named: str, folder: Path, error: type[InputError]) -> Path:
    """Return the path of a file that a document in `folder` names.

    A relative path may be a link only to a file in the document's folder, or, for a path such as `../shared/x.yaml`, in
    the folder that it names: a link elsewhere would hide what is read. A full path (also `~/…`) says what is read.

    Args:
        named: The path as written.
        folder: Folder of the document.
        error: Class of the error to raise.

    Raises:
        error: The file is a link that leads elsewhere, or a broken one. A missing file is for its reader to report.
    """
    full = Path(os.path.expanduser(named))
    if full.is_absolute():
        return full
    path = Path(os.path.normpath(folder / named))  # what is checked is what is read, also where `..` follows a link
    if present(path):
        root = folder if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)) else path.parent
        with _readable(path, error):
            real, inside = path.resolve(strict=True), _allowed(root.resolve())
        if not any(real.is_relative_to(place) for place in inside):
            what = f"leads to {real}, outside of {root}"
            next = "If you trust that file, copy it into the folder, or name it by its full path"
            raise error(str(path), what, "Files, and links to files in this folder", next)
    return path


def open_file(path: Path, error: type[InputError], root: Path | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: The file.
        error: Class of the error to raise.
        root: See `locate`.

    Raises:
        error: The file is missing, unreadable, outside of `root`, or not regular (a folder, a device, a pipe).
    """
    real = locate(path, error, root)
    with _readable(path, error):
        descriptor = os.open(real, CAREFULLY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise error(str(path), "not a regular file", "A file, or a link to one in the same folder")
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


def read_bytes(path: Path, error: type[InputError], limit: int, root: Path | None = None) -> bytes:
    """Read a regular file.

    Args:
        path: The file.
        error: Class of the error to raise.
        limit: Largest size in bytes. Files that have no size, such as those in /proc, are read no further.
        root: See `locate`.

    Raises:
        error: The file cannot be opened (see `open_file`), or is larger than `limit`.
    """
    with open_file(path, error, root) as file, _readable(path, error):
        data = file.read(limit + 1)
    if len(data) > limit:
        raise error(str(path), f"larger than {_size(limit)}", next="Check that this is the right file")
    return data


def read_text(path: Path, error: type[InputError], limit: int, root: Path | None = None) -> str:
    """Read a regular file as UTF-8 text; line ends become newlines. See `read_bytes`.

    Raises:
        error: The file cannot be opened, is larger than `limit` bytes, or is not UTF-8.
    """
    return decode(read_bytes(path, error, limit, root), str(path), error)


def decode(data: bytes, where: str, error: type[InputError]) -> str:
    """Decode UTF-8 text; line ends become newlines.

    Raises:
        error: The data is not UTF-8.
    """
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise error(where, f"not UTF-8 text (line {line})", "A text file") from None


def read_json(
    path: Path, error: type[InputError], limit: int, root: Path | None = None, large: Collection[int] = ()
) -> dict[str, Any]:
    """Read a JSON object from a regular file; see `read_bytes` and `parse_json`.

    Raises:
        error: The file cannot be opened, is larger than `limit` bytes, or `parse_json` rejects it.
    """
    data = parse_json(read_bytes(path, error, limit, root), str(path), error, large)
    if not isinstance(data, dict):
        raise error(str(path), f"got a {type(data).__name__}", "A JSON object")
    return data


def parse_json(data: bytes, where: str, error: type[InputError], large: Collection[int] = ()) -> Any:
    """Parse JSON with integers below `MAX_INTEGER`, finite numbers, and at most `MAX_DEPTH` levels.

    Args:
        data: The text, in UTF-8.
        where: The file, for errors.
        error: Class of the error to raise.
        large: Larger integers that are accepted too.

    Raises:
        error: The data is not JSON, or exceeds these limits.
    """
    known = {str(number): number for number in large}
    refused: list[str] = []  # in the order of the text; their numbers become NaN until their keys are known

    def refuse(what: str) -> float:
        refused.append(what)
        return math.nan

    def integer(digits: str) -> float:
        if digits in known:
            return known[digits]
        number = int(digits) if len(digits.lstrip("-")) <= MAX_DIGITS else MAX_INTEGER
        return number if abs(number) < MAX_INTEGER else refuse(f"the number {shown(digits)} is too large")

    def real(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse(f"the number {shown(digits)} is too large")

    def constant(name: str) -> float:
        return refuse(f"got {name}, which is not JSON")

    with boundary(where, error, "invalid JSON"):
        text = data.decode("utf-8")
        found = json.loads(text, parse_int=integer, parse_float=real, parse_constant=constant)
    _check_depth(found, where, error)
    if refused:
        key = next((path for path, _ in not_finite(found)), "")  # none if another entry replaced it
        raise error(f"{where}: {key}" if key else where, refused[0], "Whole numbers below 2^63, and finite ones")
    return found


def not_finite(document: Any) -> Iterator[tuple[str, float]]:
    """Yield (path of keys, value) of each number in a document that is NaN or infinite, in the document's order."""
    nodes: list[tuple[str, Any]] = [("", document)]
    while nodes:
        path, node = nodes.pop()
        if isinstance(node, Mapping):
            nodes += reversed([(f"{path}.{key}" if path else str(key), value) for key, value in node.items()])
        elif isinstance(node, list):
            nodes += reversed([(f"{path}[{index}]", value) for index, value in enumerate(node)])
        elif isinstance(node, float) and not math.isfinite(node):
            yield path, node


@contextmanager
def boundary(where: str, error: type[InputError], what: str, next: str | None = None) -> Iterator[None]:
    """Turn any exception within the block into an input error; the package's own errors pass.

    Parsers and libraries fail on damaged input with whatever they meet: recursion, memory, arithmetic, attributes of
    None, panics of native code, which are no `Exception`.

    Args:
        where: File and key.
        error: Class of the error to raise.
        what: What is wrong, before the reason.
        next: What to do next.

    Raises:
        error: The block raised an exception.
    """
    try:
        yield
    except (EvosearchError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:
        raise error(where, f"{what}: {reason(exc)}", next=next) from exc


def reason(exc: BaseException) -> str:
    """Return the first two lines of an exception's message in one, cut to 300 characters; its type without one."""
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    try:
        lines = [line.strip() for line in str(exc).strip().splitlines()[:2]]
    except Exception:  # an exception without a valid message
        lines = []
    text = " ".join(line for line in lines if line)
    if isinstance(exc, KeyError | IndexError | AssertionError | MemoryError | ArithmeticError) or not text:
        text = f"{type(exc).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= 300 else text[:297] + "..."


def shown(value: Any) -> str:
    """Return a value for a message, text as it is, cut to 60 characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def quoted(value: Any) -> str:
    """Return a value for a message, text in quotes, cut to 60 characters."""
    return shown(repr(value))


@contextmanager
def _readable(path: Path, error: type[InputError]) -> Iterator[None]:
    """Turn an OSError, or the ValueError of an invalid path, into an input error."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as exc:  # RuntimeError: a loop of links
        said = getattr(exc, "strerror", None) or str(exc)
        where = str(path) if len(str(path)) <= MAX_PATH else shown(str(path))
        raise error(where, said, next="Check the path and its permissions") from None


def _allowed(root: Path) -> tuple[Path, ...]:
    """Return the folders with a root's files: itself, and the hub's blobs for a snapshot of its cache."""
    return (root, root.parent.parent / BLOBS) if root.parent.name == SNAPSHOTS else (root,)


def _check_depth(data: Any, where: str, error: type[InputError]) -> None:
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        below = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list))
        level = [child for children in below for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise error(where, f"nested more than {MAX_DEPTH} levels deep")


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 2**20 else f"{limit} bytes"
