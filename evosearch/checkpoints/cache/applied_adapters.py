"""Adapters applied once: the tensors that an overlay makes are kept as files, which processes map and share.

They lie in `<cache>/prepared/<content_sha256>/<dtype>/`, as safetensors files alone, a folder for each type that they
have. What the adapter does not change is mapped from the base, wherever that lies.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from evosearch.checkpoints.digest import DTYPES
from evosearch.checkpoints.files import ModelFiles, TensorInfo
from evosearch.checkpoints.overlay import Made, Overlay
from evosearch.checkpoints.writer import CheckpointWriter

FOLDER = "prepared"  # in the cache

Own = dict[str, dict[str, TensorInfo]]  # dtype → tensor → what it is


def folder_of(overlay: Overlay, cache: Path) -> Path:
    """Where its tensors are kept; its content, base and adapter, names the place."""
    return cache / FOLDER / overlay.content_sha256()


def missing_bytes(overlay: Overlay, folder: Path) -> int:
    """Bytes of the tensors that are not kept there yet."""
    return sum(
        math.prod(info.shape) * DTYPES[dtype].itemsize
        for dtype, tensors in _own(overlay).items()
        if not (folder / dtype).is_dir()
        for info in tensors.values()
    )


def keep(overlay: Overlay, folder: Path, done: Callable[[float], None] | None = None) -> None:
    """Write what is not there yet; each type's folder appears whole or not at all.

    Args:
        done: told the part that is written, in [0, 1].

    Raises:
        CheckpointError: it cannot be written.
    """
    whole, written = missing_bytes(overlay, folder), 0
    for dtype, tensors in _own(overlay).items():
        if (folder / dtype).is_dir():  # appeared by rename, so it is whole
            continue
        layout = [(name, info.shape) for name, info in tensors.items()]
        with CheckpointWriter(folder / dtype, layout, DTYPES[dtype]) as writer:
            for name in tensors:
                tensor = overlay.load(name)
                writer.add(name, tensor)
                written += tensor.nbytes
                if done:
                    done(written / whole)


def kept(overlay: Overlay, folder: Path) -> Overlay:
    """The same checkpoint, with what it made mapped from where it is kept.

    Raises:
        CheckpointError: a file is damaged.
    """
    mapped: dict[str, Made] = {}
    for dtype, tensors in _own(overlay).items():
        files = ModelFiles(folder / dtype).where
        for name, info in tensors.items():
            mapped[name] = info, partial(files[name].load, name)
    return overlay.with_made(mapped)


def _own(overlay: Overlay) -> Own:
    found: Own = {}
    for name, (info, _) in sorted(overlay.made.items()):
        found.setdefault(info.dtype, {})[name] = info
    return found
