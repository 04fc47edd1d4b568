"""Files of moments: safetensors files in the cache whose tensors are summed up in place.

The sums are mapped from the file while they are computed, so that the operating system may write them to the disk: of
7B parameters they take 28 GB, which need not fit the memory. A file appears by rename, so it is complete.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from evosearch.checkpoints.cache.drafts import draft
from evosearch.checkpoints.cache.layout import STATISTICS
from evosearch.checkpoints.cache.locks import LOCKS, locked
from evosearch.checkpoints.cache.uses import hold
from evosearch.checkpoints.disk_space import check_disk_space
from evosearch.errors import CheckpointError
from evosearch.umask import follow_umask

ITEM = 4  # bytes of a float32
SHARED = "shared"  # key of the header: JSON of the names that have the tensor of another name

Shapes = Mapping[str, tuple[int, ...]]
Report = Callable[[str, float], None]  # description, completed fraction


class Moments:
    """A complete file of moments, memory-mapped.

    Raises:
        OSError, SafetensorError: There is no such file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = cast(Any, safe_open(path, framework="pt"))
        shared = json.loads((self._file.metadata() or {}).get(SHARED, "{}"))
        self._names = {name: name for name in [*self._file.keys()]} | shared

    def has(self, name: str) -> bool:
        """Return whether a tensor of the model has one."""
        return name in self._names

    def load(self, name: str) -> torch.Tensor:
        """Return the moments at a tensor of the model: float32, mapped from the file."""
        found: torch.Tensor = self._file.get_tensor(self._names[name])
        return found


def open_moments(path: Path) -> Moments | None:
    """Open a file of moments; None if there is none, or it is damaged."""
    try:
        return Moments(path)
    except (OSError, SafetensorError, ValueError):
        return None


def computed_once(cache: Path, file: Path, what: str, report: Report, compute: Callable[[Path], None]) -> Moments:
    """Return the moments in a file of the cache; compute them first, under a lock, if it is missing or damaged.

    Args:
        cache: The node's cache folder.
        file: The file, in its folder of statistics.
        what: Description.
        report: Called with a description and the completed fraction.
        compute: Writes the file.

    Raises:
        CheckpointError: The file was written, and cannot be read.
    """
    hold(cache, STATISTICS, file.name, what)
    found = open_moments(file)
    if found is None:
        with locked(cache / LOCKS / file.stem, partial(report, f"waiting for another process's {what}", 0.0)):
            found = open_moments(file)  # computed by another process meanwhile
            if found is None:
                compute(file)
                found = open_moments(file)
    if found is None:
        raise CheckpointError(str(file), "was written, and cannot be read", next="Check the disk of EVOSEARCH_CACHE")
    return found


def check_finite(totals: Mapping[str, torch.Tensor], reference: str) -> None:
    """Check that a model's statistics are finite.

    Raises:
        CheckpointError: One is not.
    """
    for name, total in totals.items():
        if not torch.stack(torch.aminmax(total)).isfinite().all():
            what = f"its statistics at '{name}' are not finite"
            raise CheckpointError(reference, what, next="Check that the model gives finite answers")


@contextmanager
def scratch(folder: Path, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """A float32 tensor, mapped from a file in a draft that is removed at the end of the context.

    Raises:
        CheckpointError: The disk has too little space, or cannot be written.
    """
    size = ITEM * math.prod(shape)
    check_disk_space(folder, size, "hidden states of a sample")
    with draft(folder, name) as made:
        path = made / "states"
        with path.open("wb") as handle:
            handle.truncate(size)
        yield _mapped(path, 0, {"": shape})[""]


@contextmanager
def sums(path: Path, shapes: Shapes, shared: Mapping[str, str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Tensors of zeros to be summed into; the file appears at the end of the context, unless it fails.

    Args:
        path: The file.
        shapes: Name → shape.
        shared: Name of another tensor of the model → name in `shapes` of its moments.

    Yields:
        Name → float32 tensor, mapped from the file that is being written.

    Raises:
        CheckpointError: The file cannot be written, or the disk has too little space.
    """
    header, size = _header(shapes, shared)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_disk_space(path.parent, len(header) + size, "statistics of a model")
        with draft(path.parent, path.stem) as made:
            temporary = made / path.name
            with temporary.open("wb") as handle:
                handle.write(header)
                handle.truncate(len(header) + size)  # zeros, which take no space yet
            yield _mapped(temporary, len(header), shapes)
            _flush(temporary)
            follow_umask(temporary)
            temporary.replace(path)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise CheckpointError(str(path), what, next="Check disk space and permissions of EVOSEARCH_CACHE") from None


def _header(shapes: Shapes, shared: Mapping[str, str]) -> tuple[bytes, int]:
    """Return the start of a safetensors file, and the bytes of its tensors."""
    entries: dict[str, object] = {"__metadata__": {SHARED: json.dumps(dict(shared))}}
    at = 0
    for name, shape in shapes.items():
        end = at + ITEM * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 64)  # aligned numbers
    return len(text).to_bytes(8, "little") + text, at


def _mapped(path: Path, start: int, shapes: Shapes) -> dict[str, torch.Tensor]:
    count = sum(math.prod(shape) for shape in shapes.values())
    whole = torch.from_file(str(path), shared=True, size=start // ITEM + count, dtype=torch.float32)[start // ITEM :]
    found, at = {}, 0
    for name, shape in shapes.items():
        found[name] = whole[at : at + math.prod(shape)].view(shape)
        at += math.prod(shape)
    return found


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
