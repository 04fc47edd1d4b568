"""Memory-mapped checkpoints: opening one reads only headers; the pages of a tensor are read on first use."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch

from evosearch.checkpoints.cache.hashes import Hashes
from evosearch.checkpoints.digest import DTYPES, combine, finite, tensor_line
from evosearch.checkpoints.families.registry import Family, family_of
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.tensor_files import CONFIG, INDEX, SINGLE, ModelFiles, TensorInfo
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import ModelShape, Place
from evosearch.untrusted import quoted

__all__ = ["CONFIG", "INDEX", "SINGLE", "Checkpoint", "TensorInfo"]

WIDTH = ("hidden_size", "n_embd")  # keys of the width of the residual stream
HASH_THREADS = 4  # hashing releases the GIL; more threads would wait for the disk


class Statistics(Protocol):
    """Statistics of a model over a sample, tensor by tensor; computed when they are first needed."""

    def has(self, name: str) -> bool:
        """Return whether there is a statistic at a tensor, by its name in the model.

        Raises:
            CheckpointError: The statistics cannot be computed.
        """
        ...

    def load(self, name: str) -> torch.Tensor:
        """Return the statistic at a tensor: float32 on the CPU, memory-mapped."""
        ...


class Checkpoint:
    """A model folder, opened by `Checkpoint.open`.

    Attributes:
        reference: Reference used in recipes and messages.
        folder: Its path.
        config: Content of config.json.
        family: Family of its architecture.
        shape: Its tensors.
        tensors: Name in `shape` → dtype and shape.
        notes: Warnings for the user, one sentence each.
        statistics: (key of a sample, kind) → the model's statistics, for recipes with that sample.
    """

    notes: tuple[str, ...] = ()
    statistics: Mapping[tuple[str, str], Statistics] = MappingProxyType({})

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
        except CheckpointError as error:  # located at `config.json: key`
            raise CheckpointError(f"{folder}/{error.where}", error.what, error.allowed, error.next) from None
        self._stored = self._stored_names()
        self._check_names()
        self.tensors: Mapping[str, TensorInfo] = {name: self._info(name) for name in self.shape.by_name}
        self._check_dtypes()
        self._check_embeddings()

    @classmethod
    def open(
        cls,
        folder: Path,
        reference: str | None = None,
        allow_pickle: bool = False,
        hashes: Hashes | None = None,
    ) -> "Checkpoint":
        """Open a model folder; reads its config and the headers of its tensor files.

        Args:
            folder: Path of the model.
            reference: Reference used in messages; default: the path.
            allow_pickle: Read pickled weights (`pytorch_model.bin`) if there are no others; see `pickles`.
            hashes: Cache of hashes.

        Raises:
            CheckpointError: The folder, the config or a tensor file is missing, damaged, unsupported or incomplete.
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
        """Folder of tokenizer and chat template."""
        return self.folder

    @property
    def files(self) -> tuple[Path, ...]:
        """The config, the index of shards if there is one, and the files of the weights."""
        weights = dict.fromkeys(file.path for file in self._files.where.values())
        return tuple(dict.fromkeys((self.folder / CONFIG, self._files.listing, *weights)))

    @property
    def dtype(self) -> torch.dtype:
        """The most common dtype among the tensors."""
        return DTYPES[Counter(info.dtype for info in self.tensors.values()).most_common(1)[0][0]]

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, memory-mapped: do not write to it."""
        stored = self._stored[name]
        return self._files.where[stored].load(stored)

    def shares(self, name: str) -> "Checkpoint | None":
        """Return the checkpoint that a tensor is taken from; None for one of its own. See `overlay`."""
        return None

    def content_sha256(self) -> str:
        """Return the hash of the weights (see `digest`); reads all of them unless the hash is cached.

        Raises:
            CheckpointError: A weight is NaN or infinite.
        """
        return self._content_sha256

    @cached_property
    def _content_sha256(self) -> str:
        return self._hashes.of(self.files, self._hashed) if self._hashes else self._hashed()

    def _hashed(self) -> str:
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            return combine(pool.map(lambda name: tensor_line(name, self._finite(name)), self.tensors))

    def _finite(self, name: str) -> torch.Tensor:
        """Load a tensor, and check that its values are finite."""
        return finite(self.load(name), self._file(name), f"'{name}' of {self.reference}")

    def _info(self, name: str) -> TensorInfo:
        stored = self._stored[name]
        return self._files.where[stored].info(stored)

    def _file(self, name: str) -> str:
        return str(self._files.where[self._stored[name]].path)

    def _stored_names(self) -> dict[str, str]:
        """Return name in the family's shape → name in the files."""
        stored: dict[str, str] = {}
        for name in self._files.where:
            canonical = self.family.canonical(name)
            if self.family.skipped(name) or self.family.skipped(canonical):
                continue
            if canonical in stored:
                what = f"'{stored[canonical]}' and '{name}' are both '{canonical}'"
                raise CheckpointError(str(self._files.where[name].path), what, "Only one of the two", "Remove one")
            stored[canonical] = name
        return stored

    def _check_names(self) -> None:
        expected = self.shape.by_name
        missing = [name for name in expected if name not in self._stored]
        if missing:
            what = f"tensor '{missing[0]}' is missing" + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
            raise CheckpointError(
                str(self._files.listing), what, next=f"{CONFIG} requires it. Check that the folder is complete"
            )
        for name, stored in self._stored.items():
            if name in expected:
                continue
            original = self.family.tied.get(name) if self.shape.tied_embeddings else None
            if original is None:
                allowed = f"The tensors of {self.shape.architecture} with {self.shape.num_layers} layers"
                next = f"Check that {CONFIG} belongs to these weights"
                raise CheckpointError(self._file(name), f"unexpected tensor '{stored}'", allowed, next)
            # transformers unties the two if they differ; merging only one of them would change the model
            if not torch.equal(self.load(name), self.load(original)):
                what = f"'{name}' differs from '{original}' though tie_word_embeddings is true"
                raise CheckpointError(self._file(name), what, next=f"Set tie_word_embeddings to false in {CONFIG}")

    def _check_embeddings(self) -> None:
        """Compare the sizes in the config with the token embeddings, the first tensor of every family."""
        name = self.shape.names(Place.EMBEDDINGS)[0]
        sizes = self.tensors[name].shape
        for keys, size in zip((("vocab_size",), WIDTH), sizes, strict=False):
            key = next((key for key in keys if key in self.config), None)
            if key is not None and self.config[key] != size:
                what = f"got {quoted(self.config[key])}, but '{name}' is {' × '.join(map(str, sizes))}"
                next_step = f"Check that {CONFIG} belongs to these weights"
                raise CheckpointError(f"{self.folder / CONFIG}: {key}", what, str(size), next_step)

    def _check_dtypes(self) -> None:
        for name, info in self.tensors.items():
            if info.dtype not in DTYPES:
                what = f"tensor '{self._stored[name]}' is stored as {info.dtype}"
                raise CheckpointError(self._file(name), what, f"One of {', '.join(DTYPES)}")
