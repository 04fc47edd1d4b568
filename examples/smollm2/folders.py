"""Folders that are written atomically and reused if they are already complete."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models" / "smollm2"
MARKER = "prepared.json"  # written last: the sources of a folder, and its files with their sizes

Sources = Mapping[str, str | int | float]


def make_folder(target: Path, sources: Sources, write: Callable[[Path], None], force: bool = False) -> dict[str, Any]:
    """Write `target` with `write` in a temporary folder, then rename it; reuse `target` if it is already complete.

    Args:
        target: Folder to write.
        sources: Everything that determines the content; a folder with other sources is replaced.
        write: Writes the files into the given folder.
        force: Whether to replace even a complete folder with the same sources.

    Returns:
        `{path, bytes, seconds, kept}`, where `kept` is whether the existing folder was reused.

    Raises:
        CheckpointError: The folder exists and was not written by this function, so it is not replaced.
    """
    if target.exists() and not (target / MARKER).is_file():
        raise CheckpointError(
            str(target), "exists and was not written by this command", next="Move it, or give another --out"
        )
    if not force and is_complete(target, sources):
        progress(f"{target.name}: already complete")
        return {"path": str(target), "bytes": _bytes(target), "seconds": 0.0, "kept": True}
    began = time.monotonic()
    partial, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    for stale in (partial, old):  # from a killed run, not a concurrent one: the caller has the lock
        shutil.rmtree(stale, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (partial / MARKER).write_text(json.dumps({"sources": dict(sources), "files": files}, indent=1))
        for name in files:  # safetensors makes its files readable only by the owner
            (partial / name).chmod((partial / MARKER).stat().st_mode)
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        for stale in (partial, old):
            shutil.rmtree(stale, ignore_errors=True)
    seconds = round(time.monotonic() - began, 1)
    progress(f"{target.name}: {_bytes(target) / 1e6:.0f} MB in {seconds:.0f} s")
    return {"path": str(target), "bytes": _bytes(target), "seconds": seconds, "kept": False}


def is_complete(target: Path, sources: Sources) -> bool:
    """Return whether the folder is complete and has these sources."""
    return sources_of(target) == dict(sources)


def sources_of(target: Path) -> dict[str, Any] | None:
    """Sources of a complete folder; None if its marker or a file is missing."""
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
        sizes = {name: (target / name).stat().st_size for name in marker["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return marker.get("sources") if marker["files"] == sizes else None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a folder for writing; the operating system releases the lock when the process exits.

    Raises:
        CheckpointError: The path is not a folder, or another process holds the lock.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CheckpointError(f"--out {out}", "not a folder", "A folder, existing or new") from None
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CheckpointError(
            str(out), "another process is writing to this folder", next="Wait until it has finished"
        ) from None
    finally:
        os.close(handle)


def write_text(target: Path, text: str) -> None:
    """Write a file atomically, unless it already has this content."""
    partial = target.with_name(f".{target.name}.partial")
    if target.is_file() and target.read_bytes() == text.encode():
        return
    partial.write_bytes(text.encode())
    partial.replace(target)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def progress(line: str) -> None:
    """Print a line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
