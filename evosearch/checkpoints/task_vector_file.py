"""Files of task vectors: τ = θ − θ₀, as `evosearch diff` writes them.

A folder with one safetensors file. Its tensors have the names of the base; tensors that the model does not change are
left out. The key `evosearch` of the file's metadata has the base's content hash and the rest of the header, as JSON.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from evosearch.checkpoints.tensor_files import Safetensors
from evosearch.errors import CheckpointError
from evosearch.untrusted import parse_json, present

TASK_VECTOR = "task_vector.safetensors"
KEY = "evosearch"  # of the metadata
FORMAT = "task_vector 1"
TEXTS = 4  # fields of the header that are texts; the others are lists


@dataclass(frozen=True)
class VectorHeader:
    """Origin of a task vector.

    Attributes:
        base: Reference of the base; a local one is relative to the vector's folder.
        base_sha256: The base's `content_sha256`.
        model: Reference of the model, as it was given, of a local one only the name.
        model_sha256: The model's `content_sha256`.
        unchanged: Tensors that the model shares with its base.
        only_in_base: Tensors of the base that the model lacks; they stay as they are.
        only_in_model: Tensors of the model that the base lacks; the vector does not have them.
        other_shape: Tensors whose shapes differ; they stay as in the base.
    """

    base: str
    base_sha256: str
    model: str
    model_sha256: str
    unchanged: tuple[str, ...] = ()
    only_in_base: tuple[str, ...] = ()
    only_in_model: tuple[str, ...] = ()
    other_shape: tuple[str, ...] = ()

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the file."""
        return {"format": "pt", KEY: json.dumps({"format": FORMAT} | asdict(self), separators=(",", ":"))}

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tensors in which base + vector differs from the model."""
        return (*self.only_in_base, *self.only_in_model, *self.other_shape)


def is_task_vector(folder: Path) -> bool:
    """Return whether a folder is a task vector."""
    return present(folder / TASK_VECTOR)


def read_header(folder: Path) -> VectorHeader:
    """Read the header of a task vector; its tensors are not read.

    Raises:
        CheckpointError: The file is damaged, or `evosearch diff` did not write it.
    """
    path = folder / TASK_VECTOR
    text, where = Safetensors(path).metadata().get(KEY), f"{path}: metadata.{KEY}"
    if text is None:
        raise _error(where, "is missing")
    data = parse_json(text.encode(), where, CheckpointError)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise _error(where, f"is not of the format '{FORMAT}'")
    names = [field.name for field in fields(VectorHeader)]
    if sorted(data) != sorted(names):
        raise _error(where, f"has the keys {', '.join(map(str, data))}")
    base, base_sha256, model, model_sha256 = (_text(data[name], f"{where}.{name}") for name in names[:TEXTS])
    lists = (_names(data[name], f"{where}.{name}") for name in names[TEXTS:])
    return VectorHeader(base, base_sha256, model, model_sha256, *lists)


def base_of(folder: Path) -> str:
    """Return the reference of a task vector's base; a local one is resolved against the vector's folder.

    Raises:
        CheckpointError: See `read_header`.
    """
    base = read_header(folder).base
    return os.path.normpath(folder.absolute() / base) if base.startswith(("./", "../")) else base


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _error(where, "is not a text")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _error(where, "is not a list of tensor names")
    return tuple(value)


def _error(where: str, what: str) -> CheckpointError:
    return CheckpointError(where, what, "A task vector written by evosearch diff", "Write it again")
