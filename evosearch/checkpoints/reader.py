"""Checkpoints on disk, read lazily: opening maps the files, and a tensor's pages are read when it is used."""

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evosearch.checkpoints.digest import DTYPES, combine, tensor_line
from evosearch.checkpoints.families.registry import Family, family_of
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import ModelShape

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
HASH_THREADS = 4  # hashing leaves the interpreter lock; more threads than this wait for the disk


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of one tensor; `dtype` is safetensors' name (`F32`, `BF16`)."""

    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """One model folder. Made by `Checkpoint.open`.

    Attributes:
        reference: the name it was asked for by; messages use it.
        folder: where it lies.
        config: config.json.
        family: how its architecture is laid out.
        shape: the tensors it has.
        tensors: name on disk → type and shape, for the tensors of `shape` alone.
    """

    def __init__(
        self, folder: Path, reference: str, config: Mapping[str, Any], family: Family, files: "_Files"
    ) -> None:
        self.reference, self.folder, self.config, self.family = reference, folder, config, family
        self._files = files
        try:
            self.shape: ModelShape = family.shape(config)
        except CheckpointError as error:
            raise CheckpointError(str(folder / CONFIG), error.what, error.allowed, f"See {error.where}") from None
        self._check_names()
        self.tensors: Mapping[str, TensorInfo] = {name: files.info(name) for name in self.shape.by_name}
        self._check_dtypes()

    @classmethod
    def open(cls, folder: Path, reference: str | None = None) -> "Checkpoint":
        """Open a model folder; reads its config and the headers of its safetensors files.

        Raises:
            CheckpointError: the folder, the config or a weights file is missing, damaged, unsupported or incomplete.
        """
        config = read_json(folder / CONFIG)
        family = family_of(config, str(folder / CONFIG))
        if config.get("quantization_config"):
            what = "the weights are quantized"
            raise CheckpointError(
                f"{folder / CONFIG}: quantization_config", what, "float32, bfloat16 or float16 weights"
            )
        return cls(folder, reference or str(folder), config, family, _Files(folder))

    @property
    def dtype(self) -> torch.dtype:
        """The type that most tensors are stored in."""
        return DTYPES[Counter(info.dtype for info in self.tensors.values()).most_common(1)[0][0]]

    def load(self, name: str) -> torch.Tensor:
        """One tensor on the CPU, mapped from its file: do not write to it."""
        return self._files.load(name)

    def content_sha256(self) -> str:
        """The hash of the weights, whatever files they are cut into (see `digest`). Reads them all the first time."""
        return self._content_sha256

    @cached_property
    def _content_sha256(self) -> str:
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            return combine(pool.map(lambda name: tensor_line(name, self.load(name)), self.tensors))

    def _check_names(self) -> None:
        present, expected = self._files.where, self.shape.by_name
        missing = [name for name in expected if name not in present]
        if missing:
            what = f"tensor '{missing[0]}' is missing" + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
            raise CheckpointError(str(self._files.listing), what, next=f"{CONFIG} promises it: is the folder complete?")
        for name in present:
            if name in expected or self.family.skipped(name):
                continue
            original = self.family.tied.get(name) if self.shape.tied_embeddings else None
            if original is None:
                what = f"unexpected tensor '{name}'"
                allowed = f"The tensors of {self.shape.architecture} with {self.shape.num_layers} layers"
                raise CheckpointError(
                    str(self._files.where[name]), what, allowed, f"Does {CONFIG} belong to these weights?"
                )
            # A copy that differs makes transformers untie the two; merging only one of them would change the model.
            if not torch.equal(self.load(name), self.load(original)):
                what = f"'{name}' differs from '{original}' though tie_word_embeddings is true"
                raise CheckpointError(
                    str(self._files.where[name]), what, next=f"Set tie_word_embeddings to false in {CONFIG}"
                )

    def _check_dtypes(self) -> None:
        for name, info in self.tensors.items():
            if info.dtype not in DTYPES:
                what = f"tensor '{name}' is stored as {info.dtype}"
                raise CheckpointError(str(self._files.where[name]), what, f"One of {', '.join(DTYPES)}")


class _Files:
    """The safetensors files of a folder, each open and mapped."""

    def __init__(self, folder: Path) -> None:
        self.listing, wanted = _weight_files(folder)
        self._handles = {path: _open(path) for path in sorted(set(wanted.values()))} if wanted else {}
        if not wanted:
            self._handles = {self.listing: _open(self.listing)}
            wanted = dict.fromkeys(self._handles[self.listing].keys(), self.listing)
        self.where: Mapping[str, Path] = wanted
        stored = {path: set(handle.keys()) for path, handle in self._handles.items()}
        for name, path in wanted.items():
            if name not in stored[path]:
                raise CheckpointError(
                    str(path), f"tensor '{name}' is missing", next=f"{self.listing.name} places it here"
                )

    def info(self, name: str) -> TensorInfo:
        part = self._handles[self.where[name]].get_slice(name)
        return TensorInfo(part.get_dtype(), tuple(part.get_shape()))

    def load(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._handles[self.where[name]].get_tensor(name)
        return tensor


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing or holds no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            str(path), error.strerror or str(error), "A folder with config.json and *.safetensors"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(str(path), f"holds a {type(data).__name__}", "A JSON object")
    return data


def _weight_files(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The file that lists the tensors, and for a sharded checkpoint where each tensor lies."""
    if (folder / SINGLE).is_file():
        return folder / SINGLE, {}
    if (folder / INDEX).is_file():
        return folder / INDEX, _read_index(folder / INDEX)
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        what = "only pickled weights (*.bin, *.pt), which can run code when read"
        raise CheckpointError(
            str(folder), what, f"safetensors only: {SINGLE}, or shards with {INDEX}", "Convert them first"
        )
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(str(folder), "holds an adapter, not a model", next="Merge it into its base first")
    raise CheckpointError(str(folder), "no weights", f"{SINGLE}, or shards with {INDEX}")


def _read_index(path: Path) -> dict[str, Path]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map", "missing or empty", "Tensor names and the file each lies in")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(
                f"{path}: weight_map.{name}", f"got {file!r}", "The name of a file in the same folder"
            )
    return {name: path.parent / file for name, file in weight_map.items()}


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(str(path), "no such file", next="A shard is missing: fetch or copy the model again")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        what = f"not a complete safetensors file ({error})"
        raise CheckpointError(str(path), what, next="Fetch or copy the file again") from None
