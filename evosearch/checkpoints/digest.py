"""Hash of a model's weights, `content_sha256`, independent of how they are split into files.

It is the sha256 over one JSON line per tensor, sorted by name: `["name", "dtype", [d0, d1, …], "sha256 of the bytes"]`,
each followed by a newline.
"""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from evosearch.errors import CheckpointError

# Names of safetensors files → torch types. Merging is defined on these.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Line = tuple[str, str, tuple[int, ...], str]  # (name, dtype as in DTYPES, shape, sha256 of the bytes)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the row-major bytes of a tensor, as in a safetensors file; without a copy if contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return array.data


def tensor_line(name: str, tensor: torch.Tensor) -> Line:
    """Return the line of one tensor."""
    return name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), hashlib.sha256(raw_bytes(tensor)).hexdigest()


def finite(tensor: torch.Tensor, file: str, name: str) -> torch.Tensor:
    """Return the tensor; NaN and infinity are errors, with which every candidate of this model would fail.

    Args:
        tensor: A stored tensor.
        file: Its file, for the error.
        name: Its name, and whose it is, for the error.

    Raises:
        CheckpointError: A value is NaN or infinite.
    """
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        bad = int((~tensor.isfinite()).sum())
        what = f"{name} is damaged: {bad} of its {tensor.numel()} values are NaN or infinite"
        raise CheckpointError(file, what, "Finite weights", "Download or save the model again")
    return tensor


def combine(lines: Iterable[Line]) -> str:
    """Return the hash of a model from the lines of its tensors, in any order."""
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()
