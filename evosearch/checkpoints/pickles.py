"""Pickled weights (`pytorch_model.bin`), read only where the user allows it, and then tensors alone.

A pickle is a program: an unrestricted reader runs whatever its writer put into it. `torch.load(weights_only=True)`
knows tensors and plain containers and refuses the rest, but it is a parser of hostile input all the same, so nothing
here runs without `--allow-pickle`.
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
    """The error for a folder whose weights are pickled, where that is not allowed."""
    allowed = f"safetensors only: {', or '.join(names)}"
    next = "Convert them, or, if you trust their source, allow them with --allow-pickle"
    return CheckpointError(
        str(folder), "only pickled weights (*.bin, *.pt), which can run code when read", allowed, next
    )


def load(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a pickled file, on the CPU; mapped, so a tensor's pages are read when it is used.

    Raises:
        CheckpointError: the file is missing or damaged, needs more than tensors, or holds no mapping of names to them.
    """
    if not path.is_file():
        raise CheckpointError(str(path), "no such file", next="A shard is missing: fetch or copy the model again")
    try:
        # Files from before torch 1.6 are no zip archives, and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            str(path),
            f"cannot be read as tensors alone ({_reason(error)})",
            "A pickled mapping of names to tensors",
            "It would run code, or it is damaged: get safetensors, or save its state_dict alone where you trust it",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        what = f"not a complete torch file ({_reason(error)})"
        raise CheckpointError(str(path), what, next="Fetch or copy the file again") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(str(path), f"holds a {type(content).__name__}", "A mapping of names to tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            what = f"entry {name!r} is a {type(value).__name__}"
            next = "A training checkpoint holds more than weights: save its state_dict alone"
            raise CheckpointError(str(path), what, "Names and dense tensors", next)
    return content


def _reason(error: Exception) -> str:
    """Torch explains at length; what it stumbled over stands in the line that names it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (telling or lines or [type(error).__name__])[0].removeprefix("WeightsUnpickler error: ")[:200].rstrip(". ")
