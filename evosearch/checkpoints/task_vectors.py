"""Task vectors: written one chunk at a time, and applied to their base.

    θ' = θ₀ + τ,  τ = θ − θ₀        in float32, or in float64 if base or model have float64 weights

The vector of a bfloat16 or float16 model is exact unless a weight is more than 2¹⁵ times smaller than its base's: the
difference of two such numbers fits a float32. For float32 weights, both operations round: |θ' − θ| is at most
2⁻²³ · max(|θ|, |θ₀|), one unit in the last place of the larger number, and 0 where θ is between θ₀/2 and 2 θ₀.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

import torch

from evosearch.checkpoints.cache.hashes import Hashes
from evosearch.checkpoints.digest import DTYPE_NAMES, DTYPES, combine, finite, raw_bytes, tensor_line
from evosearch.checkpoints.disk_space import check_disk_space
from evosearch.checkpoints.overlay import Computed, Overlay
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.task_vector_file import TASK_VECTOR, VectorHeader, read_header
from evosearch.checkpoints.tensor_files import Safetensors, TensorInfo
from evosearch.checkpoints.writer import draft_of, safetensors_header, unwritable
from evosearch.errors import CheckpointError

CHUNK = 1 << 22  # elements that are subtracted at once: 16 MiB in float32


@dataclass(frozen=True)
class Written:
    """A task vector that was written.

    Attributes:
        header: Its header.
        tensors: Number of tensors in the file.
        bytes: Size of the file.
        relative: ‖τ‖ / ‖θ₀‖ over the tensors that both have.
        inexact: Number of weights that θ₀ + τ does not give back exactly.
        error: Largest |θ₀ + τ − θ|.
    """

    header: VectorHeader
    tensors: int
    bytes: int
    relative: float
    inexact: int
    error: float


@torch.no_grad()
def write_task_vector(
    base: Checkpoint, model: Checkpoint, out: Path, done: Callable[[float], None] | None = None
) -> Written:
    """Write the task vector of a model to a folder, which appears complete or not at all.

    Args:
        base: The base.
        model: A model of the same architecture.
        out: Folder to create; may exist if it is empty.
        done: Called with the fraction done, in [0, 1].

    Raises:
        CheckpointError: The architectures differ, a weight is not finite, no tensor has the same shape in both, or
            `out` is not empty or cannot be written.
    """
    header = _compare(base, model, out)
    skipped = {*header.unchanged, *header.left_out}
    changed = [name for name in base.tensors if name not in skipped]
    wide = any("F64" in (each.tensors[name].dtype for name in changed) for each in (base, model))
    dtype = torch.float64 if wide else torch.float32
    layout = [(name, base.tensors[name].shape) for name in changed]
    start = safetensors_header(layout, dtype, header.metadata())
    size = len(start) + sum(torch.Size(shape).numel() for _, shape in layout) * dtype.itemsize
    sums = _Sums()
    draft = draft_of(out)
    try:
        check_disk_space(draft.folder, size, "the task vector")
        with (draft.folder / TASK_VECTOR).open("wb") as file:
            file.write(start)
            for index, name in enumerate(changed):
                _write(base.load(name), model.load(name), dtype, file, sums)
                if done:
                    done((index + 1) / len(changed))
            file.flush()
            os.fsync(file.fileno())
        read_header(draft.folder)
        draft.folder.rename(out)  # replaces an empty folder, fails on any other
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        draft.close()
    for name in header.unchanged:
        sums.base += float(torch.linalg.vector_norm(base.load(name), dtype=torch.float64)) ** 2
    return Written(header, len(changed), size, sums.relative, sums.inexact, sums.error)


def apply_task_vector(base: Checkpoint, folder: Path, reference: str, hashes: Hashes | None = None) -> Overlay:
    """Return base + task vector. Tensors are added when they are loaded.

    Args:
        base: The base.
        folder: Folder of the task vector.
        reference: Reference of the result.
        hashes: Cache of hashes.

    Raises:
        CheckpointError: The vector is damaged, or was made for a base with other weights.
    """
    header, file = read_header(folder), Safetensors(folder / TASK_VECTOR)
    if (content := base.content_sha256()) != header.base_sha256:
        what = f"its base has the content {header.base_sha256[:12]}, and '{base.reference}' has {content[:12]}"
        raise CheckpointError(str(file.path), what, f"The base that it was made for: {header.base}")
    replaced: dict[str, Computed] = {}
    for name in sorted(file.names()):
        info = _checked(base, file, name)
        replaced[name] = TensorInfo(info.dtype, base.tensors[name].shape), partial(_sum, base, file, name)
    _check_complete(base, header, set(replaced), file.path)
    overlay = Overlay(base, reference, cache(lambda: _content(base, file, hashes)), replaced)
    if header.left_out:
        listed = ", ".join(header.left_out[:4]) + (" …" if header.left_out[4:] else "")
        overlay.notes += (f"{reference}: differs from {header.model} in {len(header.left_out)} tensors: {listed}",)
    return overlay


@dataclass
class _Sums:
    """Figures that are summed while a vector is written."""

    base: float = 0.0  # Σ θ₀²
    change: float = 0.0  # Σ τ²
    inexact: int = 0
    error: float = 0.0

    @property
    def relative(self) -> float:
        return (self.change / self.base) ** 0.5 if self.base else 0.0


def _compare(base: Checkpoint, model: Checkpoint, out: Path) -> VectorHeader:
    """Compare two models tensor by tensor, which reads both."""
    if base.shape.architecture != model.shape.architecture:
        what = f"is a {model.shape.architecture}, and '{base.reference}' a {base.shape.architecture}"
        raise CheckpointError(model.reference, what, "A fine-tune of the base")
    both = [name for name in base.tensors if name in model.tensors]
    reshaped = [name for name in both if base.tensors[name].shape != model.tensors[name].shape]
    same = [name for name in both if name not in set(reshaped)]
    if not same:
        raise CheckpointError(model.reference, f"no tensor has the same shape as in '{base.reference}'")
    unchanged = [name for name in same if _equal(base, model, name)]
    return VectorHeader(
        base=_portable(base.reference, out),
        base_sha256=base.content_sha256(),
        model=model.reference if not os.path.exists(model.reference) else Path(model.reference).name,
        model_sha256=model.content_sha256(),
        unchanged=tuple(unchanged),
        only_in_base=tuple(name for name in base.tensors if name not in model.tensors),
        only_in_model=tuple(name for name in model.tensors if name not in base.tensors),
        other_shape=tuple(reshaped),
    )


def _equal(base: Checkpoint, model: Checkpoint, name: str) -> bool:
    if model.shares(name) is base:
        return True
    pairs = _chunks(base.load(name), model.load(name))
    return all(torch.equal(one.double(), other.double()) for one, other in pairs)


def _portable(reference: str, out: Path) -> str:
    """Return a reference that stays right if base and vector are moved together."""
    if not os.path.isdir(os.path.expanduser(reference)):
        return reference
    relative = os.path.relpath(Path(reference).expanduser().absolute(), out.absolute())
    return relative if relative.startswith("../") else f"./{relative}"


def _chunks(one: torch.Tensor, other: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    flat, others = one.reshape(-1), other.reshape(-1)
    for start in range(0, len(flat), CHUNK):
        yield flat[start : start + CHUNK], others[start : start + CHUNK]


def _write(base: torch.Tensor, model: torch.Tensor, dtype: torch.dtype, file: BinaryIO, sums: _Sums) -> None:
    for theta, tuned in ((a.to(dtype), b.to(dtype)) for a, b in _chunks(base, model)):
        delta = tuned - theta
        file.write(raw_bytes(delta))
        off = (theta + delta - tuned).abs()
        sums.base += float(theta.double().square().sum())
        sums.change += float(delta.double().square().sum())
        sums.inexact += int(off.count_nonzero())
        sums.error = max(sums.error, float(off.max()))


def _sum(base: Checkpoint, file: Safetensors, name: str) -> torch.Tensor:
    delta = file.load(name)
    return base.load(name).to(delta.dtype) + delta


def _checked(base: Checkpoint, file: Safetensors, name: str) -> TensorInfo:
    """Return the header of a tensor of a vector.

    Raises:
        CheckpointError: The base has no such tensor, or the type is wrong.
    """
    info, known = file.info(name), base.tensors.get(name)
    if known is None or known.shape != info.shape:
        what = f"'{name}' is {list(info.shape)}, and in the base {'missing' if known is None else list(known.shape)}"
        raise CheckpointError(str(file.path), what, next="Write the task vector again")
    if info.dtype not in (DTYPE_NAMES[torch.float32], DTYPE_NAMES[torch.float64]):
        raise CheckpointError(str(file.path), f"'{name}' is stored as {info.dtype}", "F32 or F64")
    wider = torch.promote_types(DTYPES[info.dtype], DTYPES[known.dtype])
    if wider != DTYPES[info.dtype]:
        raise CheckpointError(str(file.path), f"'{name}' is stored as {info.dtype}", DTYPE_NAMES[wider])
    return info


def _check_complete(base: Checkpoint, header: VectorHeader, stored: set[str], path: Path) -> None:
    """Check that every tensor of the base is stored, unchanged, or one that the header says is left out."""
    known = stored | {*header.unchanged, *header.only_in_base, *header.other_shape}
    missing = [name for name in base.tensors if name not in known]
    if missing:
        what = f"tensor '{missing[0]}' is missing" + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
        raise CheckpointError(str(path), what, next="Write the task vector again")


def _content(base: Checkpoint, file: Safetensors, hashes: Hashes | None) -> str:
    """Return a hash of base and vector."""

    def hashed() -> str:
        loaded = ((name, finite(file.load(name), str(file.path), f"'{name}'")) for name in file.names())
        return combine(tensor_line(name, tensor) for name, tensor in loaded)

    weights = hashes.of([file.path], hashed) if hashes else hashed()
    text = json.dumps(["task_vector", base.content_sha256(), weights])
    return hashlib.sha256(text.encode()).hexdigest()
