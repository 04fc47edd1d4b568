"""Pickled weights (`pytorch_model.bin`): read only with the user's permission, and only tensors.

Unpickling runs code from the file. `torch.load(weights_only=True)` accepts only tensors and plain containers, but it
still parses untrusted input, so pickles are read only with `--allow-pickle`.
"""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from evosearch.errors import CheckpointError

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
ADAPTER = "adapter_model.bin"
PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def refused(folder: Path, names: Iterable[str]) -> CheckpointError:
    """Return the error for a folder with pickled weights if pickles are not allowed."""
    allowed = f"Only safetensors: {', or '.join(names)}"
    next = "Convert them, or allow them with --allow-pickle if you trust their source"
    return CheckpointError(
        str(folder), "only pickled weights (*.bin, *.pt), which can run code when loaded", allowed, next
    )


def load(path: Path, real: Path | None = None) -> Mapping[str, torch.Tensor]:
    """Load the tensors of a pickled file, memory-mapped on the CPU.

    Args:
        path: The file, for errors.
        real: Where to read it, if `path` is a link.

    Raises:
        CheckpointError: The file is missing or damaged, or is not a plain mapping of names to tensors.
    """
    file = real or path
    try:
        # Files from before torch 1.6 are not zip archives and cannot be mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            str(path),
            f"contains more than tensors, or is damaged ({_reason(error)})",
            "A pickled mapping of names to tensors",
            "Get safetensors, or save only its state_dict if you trust its source",
        ) from None
    except Exception as error:  # the file is damaged in one of many ways
        what = f"not a complete torch file ({_reason(error)})"
        raise CheckpointError(str(path), what, next="Download or copy the file again") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(str(path), f"got a {type(content).__name__}", "A mapping of names to tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            what = f"entry {name!r} is a {type(value).__name__}"
            next = "For a training checkpoint, save only its state_dict"
            raise CheckpointError(str(path), what, "Names and dense tensors", next)
    return content


def _reason(error: Exception) -> str:
    """Return the line of torch's long explanation that names the offending object."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    specific = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (specific or lines or [type(error).__name__])[0].removeprefix("WeightsUnpickler error: ")[:200].rstrip(". ")
