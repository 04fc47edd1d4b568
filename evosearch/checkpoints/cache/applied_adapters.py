"""Cache of applied adapters: the computed tensors of an overlay, as files that all processes of a node map.

They are safetensors files in `<cache>/prepared/<content_sha256>/<dtype>/`, one folder per dtype. Unchanged tensors are
mapped from the base.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from evosearch.checkpoints.cache.layout import PREPARED
from evosearch.checkpoints.digest import DTYPES
from evosearch.checkpoints.overlay import Computed, Overlay
from evosearch.checkpoints.tensor_files import ModelFiles, TensorInfo
from evosearch.checkpoints.writer import CheckpointWriter

ByDtype = dict[str, dict[str, TensorInfo]]  # dtype → tensor → header


def folder_of(overlay: Overlay, cache: Path) -> Path:
    """Return the cache folder of an overlay's tensors, named by the content of base and adapter."""
    return cache / PREPARED / overlay.content_sha256()


def missing_bytes(overlay: Overlay, folder: Path) -> int:
    """Return the bytes of the tensors that are not cached yet."""
    return sum(
        math.prod(info.shape) * DTYPES[dtype].itemsize
        for dtype, tensors in _by_dtype(overlay).items()
        if not (folder / dtype).is_dir()
        for info in tensors.values()
    )


def store(overlay: Overlay, folder: Path, done: Callable[[float], None] | None = None) -> None:
    """Write the missing tensors; the folder of each dtype is created atomically.

    Args:
        overlay: A model with an adapter applied.
        folder: See `folder_of`.
        done: Called with the fraction written, in [0, 1].

    Raises:
        CheckpointError: The folder cannot be written.
    """
    total, written = missing_bytes(overlay, folder), 0
    for dtype, tensors in _by_dtype(overlay).items():
        if (folder / dtype).is_dir():  # created by rename, so it is complete
            continue
        layout = [(name, info.shape) for name, info in tensors.items()]
        with CheckpointWriter(folder / dtype, layout, DTYPES[dtype]) as writer:
            for name in tensors:
                tensor = overlay.load(name)
                writer.add(name, tensor)
                written += tensor.nbytes
                if done:
                    done(written / total)


def load(overlay: Overlay, folder: Path) -> Overlay:
    """Return the same checkpoint with its computed tensors mapped from the cache.

    Raises:
        CheckpointError: A file is damaged.
    """
    mapped: dict[str, Computed] = {}
    for dtype, tensors in _by_dtype(overlay).items():
        files = ModelFiles(folder / dtype).where
        for name, info in tensors.items():
            mapped[name] = info, partial(files[name].load, name)
    return overlay.with_computed(mapped)


def _by_dtype(overlay: Overlay) -> ByDtype:
    found: ByDtype = {}
    for name, (info, _) in sorted(overlay.computed.items()):
        found.setdefault(info.dtype, {})[name] = info
    return found
