"""Local copies of models on network file systems.

A copy is stored in `<cache>/copies/<key>/`. The key covers the paths, sizes and times of the files, so a changed model
is copied again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from evosearch.checkpoints.cache.drafts import draft
from evosearch.checkpoints.cache.layout import COPIES
from evosearch.checkpoints.model_files import listed, regular
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.writer import COMPANIONS, TOKENIZER_FILES
from evosearch.errors import CheckpointError


def files_to_copy(checkpoint: Checkpoint) -> dict[str, Path]:
    """Return path within the folder → real path, for every file that is read from a model.

    Raises:
        CheckpointError: A file is not regular, or outside of the folder.
    """
    folder = checkpoint.folder
    companions = listed(folder, (*COMPANIONS, *TOKENIZER_FILES))
    return {file.name: regular(file, folder) for file in checkpoint.files} | {
        name: regular(file, folder) for name, file in companions.items()
    }


def folder_of(checkpoint: Checkpoint, cache: Path) -> Path:
    """Return the folder of a model's copy, which need not exist yet."""
    files = {str(path): path.stat() for path in files_to_copy(checkpoint).values()}
    stamps = {path: [stat.st_size, stat.st_mtime_ns] for path, stat in files.items()}
    return cache / COPIES / hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest()


def missing_bytes(checkpoint: Checkpoint, folder: Path) -> int:
    """Return the bytes to copy; 0 if the copy exists."""
    return 0 if folder.is_dir() else sum(path.stat().st_size for path in files_to_copy(checkpoint).values())


def copy(checkpoint: Checkpoint, folder: Path, done: Callable[[float], None] | None = None) -> None:
    """Copy a model, following links; the folder is created atomically. The caller must hold a lock.

    Args:
        checkpoint: The model.
        folder: See `folder_of`.
        done: Called with the fraction copied, in [0, 1].

    Raises:
        CheckpointError: A file cannot be read or written.
    """
    if folder.is_dir():  # created by rename, so it is complete
        return
    total, copied = missing_bytes(checkpoint, folder), 0
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with draft(folder.parent, folder.name) as made:
            for name, source in files_to_copy(checkpoint).items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, made / name)
                _flush(made / name)
                copied += source.stat().st_size
                if done:
                    done(copied / max(total, 1))
            made.rename(folder)
    except OSError as error:
        what = f"'{checkpoint.reference}' cannot be copied here: {error.strerror or error}"
        raise CheckpointError(str(folder), what, next="Check disk space, permissions and the network") from None


def _flush(path: Path) -> None:
    """Flush a file to disk before the folder is renamed, so that it is complete even after a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
