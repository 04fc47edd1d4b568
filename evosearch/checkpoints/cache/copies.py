"""Models that lie on a network file system, copied once to this node: from there they are mapped.

A copy lies in `<cache>/copies/<key>/`; the key names where the model lies and how its files look, so that a model that
changed is copied again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.writer import COMPANIONS, TOKENIZER_FILES
from evosearch.errors import CheckpointError

FOLDER = "copies"  # in the cache


def files_to_copy(checkpoint: Checkpoint) -> dict[str, Path]:
    """Name in the folder → file, of all that a model's folder is read for."""
    named = [checkpoint.folder / name for name in (*COMPANIONS, *TOKENIZER_FILES)]
    beside = [file for entry in named for file in (entry, *sorted(entry.rglob("*"))) if file.is_file()]
    return {str(file.relative_to(checkpoint.folder)): file for file in (*checkpoint.files, *beside)}


def folder_of(checkpoint: Checkpoint, cache: Path) -> Path:
    """Where its copy lies, or will."""
    files = {str(path): path.stat() for path in files_to_copy(checkpoint).values()}
    looks = {path: [it.st_size, it.st_mtime_ns] for path, it in files.items()}
    return cache / FOLDER / hashlib.sha256(json.dumps(looks, sort_keys=True).encode()).hexdigest()


def missing_bytes(checkpoint: Checkpoint, folder: Path) -> int:
    """Bytes that are to be copied: all or, where the copy is there, none."""
    return 0 if folder.is_dir() else sum(path.stat().st_size for path in files_to_copy(checkpoint).values())


def copy(checkpoint: Checkpoint, folder: Path, done: Callable[[float], None] | None = None) -> None:
    """Copy a model, links followed; the folder appears whole or not at all. To be called under a lock.

    Args:
        done: told the part that is copied, in [0, 1].

    Raises:
        CheckpointError: a file cannot be read or written.
    """
    if folder.is_dir():  # appeared by rename, so it is whole
        return
    whole, copied = missing_bytes(checkpoint, folder), 0
    draft = folder.with_name(f".{folder.name}.partial")
    try:
        for name, source in files_to_copy(checkpoint).items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, draft / name)
            _flush(draft / name)
            copied += source.stat().st_size
            if done:
                done(copied / max(whole, 1))
        draft.rename(folder)
    except OSError as error:
        what = f"'{checkpoint.reference}' cannot be copied here: {error.strerror or error}"
        raise CheckpointError(str(folder), what, next="Check space, permissions and the network") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _flush(path: Path) -> None:
    """Onto the disk before the folder gets its name: what is there after a power cut is whole."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
