"""Checkpoints on disk, read lazily: opening maps the files, and a tensor's pages are read when it is used."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evosearch.checkpoints.cache.hashes import Hashes
from evosearch.checkpoints.digest import DTYPES, combine, tensor_line
from evosearch.checkpoints.families.registry import Family, family_of
from evosearch.checkpoints.files import CONFIG, INDEX, SINGLE, ModelFiles, TensorInfo, read_json
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import ModelShape

__all__ = ["CONFIG", "INDEX", "SINGLE", "Checkpoint", "TensorInfo", "read_json"]

HASH_THREADS = 4  # hashing leaves the interpreter lock; more threads than this wait for the disk


class Checkpoint:
    """One model folder. Made by `Checkpoint.open`.

    Attributes:
        reference: the name it was asked for by; messages use it.
        folder: where it lies.
        config: config.json.
        family: how its architecture is laid out.
        shape: the tensors it has.
        tensors: name in `shape` → type and shape, for the tensors of `shape` alone.
        notes: what a user should know of it though nothing is wrong, a sentence each.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        folder: Path,
        reference: str,
        config: Mapping[str, Any],
        family: Family,
        files: ModelFiles,
        hashes: Hashes | None = None,
    ) -> None:
        self.reference, self.folder, self.config, self.family = reference, folder, config, family
        self._files, self._hashes = files, hashes
        try:
            self.shape: ModelShape = family.shape(config)
        except CheckpointError as error:
            raise CheckpointError(str(folder / CONFIG), error.what, error.allowed, f"See {error.where}") from None
        self._stored = self._stored_names()
        self._check_names()
        self.tensors: Mapping[str, TensorInfo] = {name: self._info(name) for name in self.shape.by_name}
        self._check_dtypes()

    @classmethod
    def open(
        cls,
        folder: Path,
        reference: str | None = None,
        allow_pickle: bool = False,
        hashes: Hashes | None = None,
    ) -> "Checkpoint":
        """Open a model folder; reads its config and the headers of its safetensors files.

        Args:
            allow_pickle: read pickled weights (`pytorch_model.bin`) where there are no others; see `pickles`.
            hashes: where hashes are looked up, and kept.

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
        return cls(folder, reference or str(folder), config, family, ModelFiles(folder, allow_pickle), hashes)

    @property
    def tokenizer_folder(self) -> Path:
        """Where tokenizer and chat template lie."""
        return self.folder

    @property
    def files(self) -> tuple[Path, ...]:
        """What says which weights there are and holds them: config, the list of shards where there is one, weights."""
        weights = dict.fromkeys(file.path for file in self._files.where.values())
        return tuple(dict.fromkeys((self.folder / CONFIG, self._files.listing, *weights)))

    @property
    def dtype(self) -> torch.dtype:
        """The type that most tensors are stored in."""
        return DTYPES[Counter(info.dtype for info in self.tensors.values()).most_common(1)[0][0]]

    def load(self, name: str) -> torch.Tensor:
        """One tensor on the CPU, mapped from its file: do not write to it."""
        stored = self._stored[name]
        return self._files.where[stored].load(stored)

    def shares(self, name: str) -> "Checkpoint | None":
        """The checkpoint whose tensor of that name this one's is; None: it has its own. See `overlay`."""
        return None

    def content_sha256(self) -> str:
        """The hash of the weights, whatever files they are cut into (see `digest`). Reads them all unless it is known.

        Raises:
            CheckpointError: a weight is NaN or infinite.
        """
        return self._content_sha256

    @cached_property
    def _content_sha256(self) -> str:
        return self._hashes.of(self.files, self._hashed) if self._hashes else self._hashed()

    def _hashed(self) -> str:
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            return combine(pool.map(lambda name: tensor_line(name, self._finite(name)), self.tensors))

    def _finite(self, name: str) -> torch.Tensor:
        """A tensor without NaN and infinity: one of them in a parent fails every candidate that is made of it."""
        tensor = self.load(name)
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            what = f"'{name}' of {self.reference} is damaged: {bad} of its {tensor.numel()} values are NaN or infinite"
            raise CheckpointError(self._file(name), what, "Weights that are numbers", "Fetch or save the model again")
        return tensor

    def _info(self, name: str) -> TensorInfo:
        stored = self._stored[name]
        return self._files.where[stored].info(stored)

    def _file(self, name: str) -> str:
        return str(self._files.where[self._stored[name]].path)

    def _stored_names(self) -> dict[str, str]:
        """Name in the family's shape → name in the files."""
        stored: dict[str, str] = {}
        for name in self._files.where:
            canonical = self.family.canonical(name)
            if self.family.skipped(name) or self.family.skipped(canonical):
                continue
            if canonical in stored:
                what = f"'{stored[canonical]}' and '{name}' are both '{canonical}'"
                raise CheckpointError(str(self._files.where[name].path), what, "One of the two", "Remove one")
            stored[canonical] = name
        return stored

    def _check_names(self) -> None:
        expected = self.shape.by_name
        missing = [name for name in expected if name not in self._stored]
        if missing:
            what = f"tensor '{missing[0]}' is missing" + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
            raise CheckpointError(str(self._files.listing), what, next=f"{CONFIG} promises it: is the folder complete?")
        for name, stored in self._stored.items():
            if name in expected:
                continue
            original = self.family.tied.get(name) if self.shape.tied_embeddings else None
            if original is None:
                allowed = f"The tensors of {self.shape.architecture} with {self.shape.num_layers} layers"
                next = f"Does {CONFIG} belong to these weights?"
                raise CheckpointError(self._file(name), f"unexpected tensor '{stored}'", allowed, next)
            # A copy that differs makes transformers untie the two; merging only one of them would change the model.
            if not torch.equal(self.load(name), self.load(original)):
                what = f"'{name}' differs from '{original}' though tie_word_embeddings is true"
                raise CheckpointError(self._file(name), what, next=f"Set tie_word_embeddings to false in {CONFIG}")

    def _check_dtypes(self) -> None:
        for name, info in self.tensors.items():
            if info.dtype not in DTYPES:
                what = f"tensor '{self._stored[name]}' is stored as {info.dtype}"
                raise CheckpointError(self._file(name), what, f"One of {', '.join(DTYPES)}")
