"""Folders that are written whole or not at all, and kept where they are complete already."""

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

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "models" / "smollm2"
MARKER = "prepared.json"  # written last into a folder: what it was made from, and its files with their sizes

Sources = Mapping[str, str | int | float]


def make_folder(target: Path, sources: Sources, write: Callable[[Path], None], force: bool = False) -> dict[str, Any]:
    """`target`, made by `write` in a folder beside it and renamed when complete; kept where it is that already.

    Args:
        sources: what the content follows from; a folder made from anything else is made again.
        force: make it again in any case.

    Returns:
        `{path, bytes, seconds, kept}`.

    Raises:
        CheckpointError: the folder exists and was not made by one of these scripts, so it is not replaced.
    """
    if target.exists() and not (target / MARKER).is_file():
        raise CheckpointError(str(target), "exists and was not written by this script", next="Move it, or give --out")
    if not force and is_complete(target, sources):
        progress(f"{target.name}: already there")
        return {"path": str(target), "bytes": _bytes(target), "seconds": 0.0, "kept": True}
    began = time.monotonic()
    partial, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    for stale in (partial, old):  # of a run that was killed; the lock says that no other is writing them
        shutil.rmtree(stale, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (partial / MARKER).write_text(json.dumps({"sources": dict(sources), "files": files}, indent=1))
        for name in files:  # safetensors writes for the owner alone; a shared folder is to be read by others too
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
    """Whether the folder holds what its marker lists, made from these sources."""
    return sources_of(target) == dict(sources)


def sources_of(target: Path) -> dict[str, Any] | None:
    """What a complete folder was made from; None where it lacks a file, or its marker."""
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
        sizes = {name: (target / name).stat().st_size for name in marker["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return marker.get("sources") if marker["files"] == sizes else None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Only one process at a time writes into a folder; the lock ends with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CheckpointError(f"--out {out}", "not a folder", "A folder, existing or new") from None
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CheckpointError(str(out), "another preparation is writing there", next="Wait for it to end") from None
    finally:
        os.close(handle)


def write_text(target: Path, text: str) -> None:
    """A file, whole or not at all; one that holds this text already stays untouched."""
    partial = target.with_name(f".{target.name}.partial")
    if target.is_file() and target.read_bytes() == text.encode():
        return
    partial.write_bytes(text.encode())
    partial.replace(target)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
