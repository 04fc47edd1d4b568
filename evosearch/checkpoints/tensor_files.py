"""Memory-mapped tensor files: safetensors, or pickles if allowed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from evosearch.checkpoints import pickles
from evosearch.checkpoints.digest import DTYPE_NAMES
from evosearch.checkpoints.model_files import read_json, regular
from evosearch.errors import CheckpointError
from evosearch.untrusted import boundary, present, quoted, shown

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Header of one tensor; `dtype` is the name in safetensors files (`F32`, `BF16`)."""

    dtype: str
    shape: tuple[int, ...]


class TensorFile(Protocol):
    """One file of tensors."""

    path: Path

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Return the header of a tensor."""
        ...

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, memory-mapped: do not write to it."""
        ...


class Safetensors:
    """A safetensors file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        real, what = _regular(path), "not a complete safetensors file"
        with boundary(str(path), CheckpointError, what, "Download or copy the file again"):
            self._handle: Any = safe_open(real, framework="pt", device="cpu")

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the file."""
        found: dict[str, str] = self._handle.metadata() or {}
        return found

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        names: Iterable[str] = self._handle.keys()
        return names

    def info(self, name: str) -> TensorInfo:
        """Return the header of a tensor."""
        header = self._handle.get_slice(name)
        return TensorInfo(header.get_dtype(), tuple(header.get_shape()))

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, memory-mapped: do not write to it."""
        tensor: torch.Tensor = self._handle.get_tensor(name)
        return tensor


class Pickled:
    """A pickled file; open one only if the user allows pickles.

    Raises:
        CheckpointError: See `pickles.load`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._tensors = path, pickles.load(path, _regular(path))

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._tensors.keys()

    def info(self, name: str) -> TensorInfo:
        """Return the header of a tensor."""
        tensor = self._tensors[name]
        # Types that are not in DTYPE_NAMES are rejected later, so their name does not matter
        return TensorInfo(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, memory-mapped: do not write to it."""
        return self._tensors[name].detach()


class ModelFiles:
    """The tensor files of a model folder.

    Attributes:
        listing: The file that lists the tensors.
        where: Stored name → file of the tensor.

    Raises:
        CheckpointError: A file is missing or damaged, or there are no weights, or only pickles, which are not allowed.
    """

    def __init__(self, folder: Path, allow_pickle: bool = False) -> None:
        self.listing, places = _weight_files(folder, allow_pickle)
        opened = {path: open_file(path) for path in sorted(set(places.values()) or {self.listing})}
        if not places:
            places = dict.fromkeys(opened[self.listing].names(), self.listing)
        stored = {path: set(file.names()) for path, file in opened.items()}
        for name, path in places.items():
            if name not in stored[path]:
                next = f"{self.listing.name} lists it in this file"
                raise CheckpointError(str(path), f"tensor '{name}' is missing", next=next)
        self.where: Mapping[str, TensorFile] = {name: opened[path] for name, path in places.items()}


def open_file(path: Path) -> TensorFile:
    """Open a tensor file by its suffix; the caller checks whether pickles are allowed."""
    return Safetensors(path) if path.suffix == ".safetensors" else Pickled(path)


def _regular(path: Path) -> Path:
    """Return the real path of a file of tensors."""
    if not present(path):
        raise CheckpointError(str(path), "no such file", next="A shard is missing. Download or copy the model again")
    return regular(path, path.parent)


def _weight_files(folder: Path, allow_pickle: bool) -> tuple[Path, dict[str, Path]]:
    """Return the file that lists the tensors, and for a sharded checkpoint name → file of each tensor."""
    names = ((SINGLE, INDEX, ".safetensors"), *(((pickles.SINGLE, pickles.INDEX, ".bin"),) if allow_pickle else ()))
    for single, index, suffix in names:
        if present(folder / single):
            return folder / single, {}
        if present(folder / index):
            return folder / index, _read_index(folder / index, suffix)
    expected = [single for single, _, _ in names]
    expected[-1] += f", or shards with {names[-1][1]}"
    if any(path for pattern in pickles.PATTERNS for path in folder.glob(pattern)):
        if not allow_pickle:
            raise pickles.refused(folder, expected)
        raise CheckpointError(str(folder), "no weights under a supported name", ", ".join(expected), "Rename the file")
    if (folder / "adapter_config.json").is_file():
        next = "Write it together with its model: model+adapter"
        raise CheckpointError(str(folder), "this is an adapter, not a model", next=next)
    raise CheckpointError(str(folder), "no weights", ", ".join(expected))


def _read_index(path: Path, suffix: str) -> dict[str, Path]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map", "missing or empty", "A mapping of tensor names to files")
    for name, file in weight_map.items():
        # A safetensors index must not open a pickle
        if not isinstance(file, str) or Path(file).name != file or Path(file).suffix != suffix:
            allowed = f"The name of a {suffix} file in the same folder"
            raise CheckpointError(f"{path}: weight_map.{shown(name)}", f"got {quoted(file)}", allowed)
    return {name: path.parent / file for name, file in weight_map.items()}
