"""Atomic, streaming writer of checkpoints.

Config and companions are written into a hidden folder next to the target, then tensors one by one, the index last. A
rename then publishes the folder. A crash leaves only the hidden folder, which is never loaded.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch

from evosearch.checkpoints.cache.drafts import Draft
from evosearch.checkpoints.digest import DTYPE_NAMES, Line, combine, raw_bytes, tensor_line
from evosearch.checkpoints.disk_space import FREE_SPACE, size
from evosearch.checkpoints.model_files import GENERATION, listed, read_json, regular
from evosearch.checkpoints.reader import CONFIG, INDEX, SINGLE
from evosearch.errors import CheckpointError

MAX_SHARD_BYTES = 5 * 10**9
# Copied unchanged from the donor and from the tokenizer's folder
COMPANIONS = (GENERATION,)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)

FULL = {  # errno → what to do
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: "Free some of your quota, or choose a folder on another disk",
    errno.EFBIG: "Raise the limit on file size (ulimit -f), or choose a folder on another disk",
}

PT = {"format": "pt"}  # metadata of files that transformers loads
Layout = Sequence[tuple[str, tuple[int, ...]]]  # names and shapes, in the order of `add`


class CheckpointWriter:
    """Writer of one checkpoint; as a context manager, it publishes the folder on success.

    Args:
        out: Folder to create; may exist if it is empty.
        layout: All tensors, in the order in which they will be added. They must be known in advance, because a
            safetensors file starts with the offsets of its tensors.
        dtype: Type of all tensors.
        donor: Model folder to copy config, generation config, tokenizer and chat template from.
        config: Content of config.json; default: the donor's.
        max_shard_bytes: Maximum size of a file that contains more than one tensor.
        tokenizer: Folder to copy tokenizer and chat template from; default: the donor.
        verify: Called with the complete folder before it is published; an exception removes it.

    Raises:
        CheckpointError: `out` is not empty or cannot be written, or there is not enough disk space.
    """

    def __init__(
        self,
        out: Path,
        layout: Layout,
        dtype: torch.dtype,
        donor: Path | None = None,
        config: Mapping[str, Any] | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        tokenizer: Path | None = None,
        verify: Callable[[Path], object] | None = None,
    ) -> None:
        self.out, self.dtype = out, dtype
        self._verify = verify
        self._donor, self._config, self._tokenizer = donor, config, tokenizer or donor
        self._shards = _cut(layout, dtype.itemsize, max_shard_bytes)
        self._pending = [(shard, name, shape) for shard, part in enumerate(self._shards) for name, shape in part][::-1]
        self._lines: list[Line] = []
        self._hashing = ThreadPoolExecutor(1)
        self._file: BinaryIO | None = None
        self._open_shard = -1
        self._needed = _needed(self._shards, dtype, self._companions().values())
        self._draft = draft_of(out)
        self._folder = self._draft.folder
        self._check_disk_space()
        self._write_settings()

    @property
    def folder(self) -> Path:
        """The hidden folder, which contains config and companions from the start."""
        return self._folder

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor of the layout; dtype and shape must match."""
        shard, expected, shape = self._pending.pop()
        assert (name, tuple(tensor.shape), tensor.dtype) == (expected, shape, self.dtype), f"'{expected}' was next"
        line = self._hashing.submit(tensor_line, name, tensor)  # takes as long as writing
        try:
            if shard != self._open_shard:
                self._start(shard)
            assert self._file is not None
            self._file.write(raw_bytes(tensor))
        except OSError as error:
            raise self._unwritable(error) from None
        self._lines.append(line.result())

    @property
    def weights_sha256(self) -> str:
        """Hash of the tensors added so far; at the end, the `content_sha256` of the checkpoint."""
        return combine(self._lines)

    @property
    def tensor_sha256(self) -> dict[str, str]:
        """Tensor → sha256 of its bytes, of the tensors added so far."""
        return {name: sha for name, _, _, sha in self._lines}

    @property
    def bytes_written(self) -> int:
        """Bytes of weights added so far."""
        done = sum(len(part) for part in self._shards) - len(self._pending)
        sizes = [_count(shape) for part in self._shards for _, shape in part]
        return sum(sizes[:done]) * self.dtype.itemsize

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
            if error is None:
                assert not self._pending, f"'{self._pending[-1][1]}' was never added"
                self._finish()
        except OSError as problem:
            if error is None:  # the first error is the one to report
                raise self._unwritable(problem) from None
        finally:
            self._hashing.shutdown()
            self._draft.close()

    def _check_disk_space(self) -> None:
        """Fail before an hour of merging if the disk is too small."""
        free = shutil.disk_usage(self._folder).free
        if free < self._needed:
            self._draft.close()
            what = f"cannot be written: {size(self._needed)} needed, {size(free)} free"
            raise CheckpointError(str(self.out), what, next=FREE_SPACE)

    def _unwritable(self, error: OSError) -> CheckpointError:
        if error.errno not in FULL:
            return unwritable(self.out, error)
        free = shutil.disk_usage(self.out.parent).free + _occupied(self._folder)  # the hidden folder will be removed
        what = f"cannot be written: {error.strerror} ({size(self._needed)} needed, {size(free)} free)"
        return CheckpointError(str(self.out), what, next=FULL[error.errno])

    def _start(self, shard: int) -> None:
        self._close()
        self._file = (self._folder / self._name(shard)).open("wb")
        self._open_shard = shard
        self._file.write(safetensors_header(self._shards[shard], self.dtype))

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with file:
                file.flush()
                os.fsync(file.fileno())

    def _companions(self) -> dict[str, Path]:
        """Return path within the folder → real path, of the files to copy unchanged."""
        # A generation config in the tokenizer's folder has its token ids and overrides the donor's
        places = [(self._donor, COMPANIONS), (self._tokenizer, (*COMPANIONS, *TOKENIZER_FILES))]
        return {
            name: regular(path, folder)
            for folder, names in places
            if folder
            for name, path in listed(folder, names).items()
        }

    def _name(self, shard: int) -> str:
        count = len(self._shards)
        return SINGLE if count == 1 else f"model-{shard + 1:05d}-of-{count:05d}.safetensors"

    def _write_settings(self) -> None:
        """Write config and companions; on failure remove the folder."""
        try:
            for name, path in self._companions().items():
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self._folder / name)
            config = self._config
            if config is None and self._donor is not None:
                config = read_json(self._donor / CONFIG)
            if config is not None:
                _write_json(self._folder / CONFIG, _with_dtype(config, self.dtype))
        except BaseException as error:
            problem = self._unwritable(error) if isinstance(error, OSError) else error
            self._draft.close()
            raise problem from None

    def _finish(self) -> None:
        if len(self._shards) > 1:
            places = {name: self._name(shard) for shard, part in enumerate(self._shards) for name, _ in part}
            _write_json(self._folder / INDEX, {"metadata": {"total_size": self.bytes_written}, "weight_map": places})
        if self._verify is not None:
            self._verify(self._folder)
        self._folder.rename(self.out)  # replaces an empty folder, fails on any other


def _needed(shards: Sequence[Layout], dtype: torch.dtype, companions: Iterable[Path]) -> int:
    """Return the number of bytes to write, except for the small config.json."""
    weights = sum(_count(shape) * dtype.itemsize for part in shards for _, shape in part)
    headers = sum(len(safetensors_header(part, dtype)) for part in shards)
    index = headers if len(shards) > 1 else 0  # upper bound: an index has only names and files
    return weights + headers + index + sum(path.stat().st_size for path in companions)


def _occupied(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _cut(layout: Layout, itemsize: int, limit: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Split the layout into files of at most `limit` bytes, each with at least one tensor."""
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in layout:
        grown = size + _count(shape) * itemsize
        if shards[-1] and grown > limit:
            shards.append([])
            grown -= size
        shards[-1].append((name, tuple(shape)))
        size = grown
    return shards


def safetensors_header(part: Layout, dtype: torch.dtype, metadata: Mapping[str, str] = PT) -> bytes:
    """Return a safetensors header: its length in 8 bytes, then JSON padded with spaces to align the data.

    Args:
        part: Names and shapes of the tensors, in the order of the file.
        dtype: Type of all tensors.
        metadata: Content of `__metadata__`.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in part:
        end = offset + _count(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _with_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a config with this dtype (also as `torch_dtype` for older libraries) and without its original path."""
    name = str(dtype).removeprefix("torch.")
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}  # a path on another machine
    return kept | {"dtype": name, "torch_dtype": name}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def draft_of(out: Path) -> Draft:
    """Create a folder next to `out`, on the same file system so that it can be renamed.

    Raises:
        CheckpointError: `out` is not empty, or the folder cannot be created.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(
                str(out), "exists and is not an empty folder", next="Choose another folder, or remove it"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        return Draft(out.parent, out.name)
    except OSError as error:
        raise unwritable(out, error) from None


def unwritable(out: Path, error: OSError) -> CheckpointError:
    """Return the error for a folder that cannot be written."""
    return CheckpointError(
        str(out), f"cannot be written: {error.strerror or error}", next="Check space and permissions"
    )
