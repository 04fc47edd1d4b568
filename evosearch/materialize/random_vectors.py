"""Placebos: models whose task vectors are random, with the norms of a real model's tensor by tensor.

    θ' = θ₀ + ‖θ − θ₀‖ · z / ‖z‖,    z ~ N(0, 1), independent for each element of each tensor

A search over placebos has the space, optimizer and budget of the search that it mirrors. Its gains come from the
freedom of the search alone, not from what the models have learned.

A plain LoRA stays one: A and B of the same shapes are drawn, and B is scaled so that ‖B·A‖ is the original's. Other
models get dense noise in each tensor that differs from the base. Results are float32, as for applied adapters: rounding
to bfloat16 would discard much of the noise.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from evosearch.checkpoints.adapters.adapted_model import changed, open_weights
from evosearch.checkpoints.adapters.adapter_config import read_config
from evosearch.checkpoints.adapters.tensors import AdapterTensors, Change
from evosearch.checkpoints.digest import DTYPE_NAMES
from evosearch.checkpoints.overlay import Computed, Overlay
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.tensor_files import TensorFile, TensorInfo
from evosearch.errors import CheckpointError
from evosearch.merging.gaussian import noise
from evosearch.merging.philox import Key, key_of

VERSION = 1  # of the definition, part of the content's hash


def dense_placebo(base: Checkpoint, model: Checkpoint, reference: str, seed: int) -> Overlay:
    """Return a model with dense noise in place of its task vector.

    Args:
        base: The base model.
        model: The model whose task vector is replaced.
        reference: Reference of the result.
        seed: Seed of the noise.

    Raises:
        CheckpointError: The model has tensors that the base does not have.
    """
    shared = {name for name in model.tensors if model.shares(name) is base}
    replaced: dict[str, Computed] = {}
    for name, info in model.tensors.items():
        if name in shared:
            continue
        at = base.tensors.get(name)
        if at is None or at.shape != info.shape:
            has = "no such tensor" if at is None else f"{_by(at.shape)} instead of {_by(info.shape)}"
            what = f"its tensor '{name}' has no task vector: the base {base.reference} has {has}"
            raise CheckpointError(model.reference, what, "Models with the tensors of their base", "Leave placebo out")
        kept = torch.float64 if "F64" in (info.dtype, at.dtype) else torch.float32
        header = TensorInfo(DTYPE_NAMES[kept], info.shape)
        replaced[name] = header, partial(_dense, base, model, name, seed, kept)
    return Overlay(model, reference, cache(lambda: _content("dense", seed, base, model)), replaced)


def adapter_placebo(
    base: Checkpoint, model: Checkpoint, folder: Path, reference: str, seed: int, allow_pickle: bool = False
) -> Overlay:
    """Return a base with a random LoRA of an adapter's ranks and norms; dense noise unless it is a plain LoRA.

    Args:
        base: The base model.
        model: The base with the adapter.
        folder: Folder of the adapter.
        reference: Reference of the result.
        seed: Seed of the noise.
        allow_pickle: Read pickled weights if there are no others.

    Raises:
        CheckpointError: The adapter cannot be read.
    """
    config, file = read_config(folder), open_weights(folder, allow_pickle)
    changes = AdapterTensors(base, config, file).changes()
    if not all(map(_is_plain, changes.values())):
        return dense_placebo(base, model, reference, seed)
    random = RandomLora(file, changes, partial(_key, seed, model))
    made = AdapterTensors(base, config, random).changes()
    return changed(base, made, reference, cache(lambda: _content("lora", seed, base, model)))


class RandomLora:
    """The weights of a LoRA with random values; each B·A has the norm of the original.

    Args:
        file: The original weights.
        changes: Tensor of the base → its change by the original.
        key: Stored name → key of its noise.
    """

    def __init__(self, file: TensorFile, changes: Mapping[str, Change], key: "partial[Key]") -> None:
        self.path, self._file, self._key = file.path, file, key
        self._a_of = {change.b: change.a for change in changes.values() if change.a and change.b}
        self._made: dict[str, Tensor] = {}  # gradients load the factors again and again

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._file.names()

    def info(self, name: str) -> TensorInfo:
        """Return the header of a tensor."""
        return TensorInfo("F32", self._file.info(name).shape)

    def load(self, name: str) -> Tensor:
        """Return a random tensor: A with its original norm, or B scaled for the norm of B·A."""
        if name not in self._made:
            self._made[name] = self._draw(name)
        return self._made[name]

    def _draw(self, name: str) -> Tensor:
        original, shape = self._file.load(name), self._file.info(name).shape
        if name not in self._a_of:
            return noise(self._key(name), shape, float(original.double().norm()))
        of_a = self._a_of[name]
        drawn = noise(self._key(name), shape, 1.0)
        norm = product_norm(drawn, self.load(of_a))
        return drawn * (product_norm(original, self._file.load(of_a)) / norm if norm else 0.0)


def product_norm(b: Tensor, a: Tensor) -> float:
    """Return ‖B·A‖ = √(Σ (BᵀB ∘ AAᵀ)) from (r, r) matrices.

    Args:
        b: (out, r).
        a: (r, in).
    """
    b, a = b.double(), a.double()
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))


def _dense(base: Checkpoint, model: Checkpoint, name: str, seed: int, dtype: torch.dtype) -> Tensor:
    theta = base.load(name).to(dtype)
    norm = float(torch.linalg.vector_norm(model.load(name).to(dtype) - theta, dtype=torch.float64))
    return theta + noise(_key(seed, model, name), tuple(theta.shape), norm, dtype)


def _key(seed: int, model: Checkpoint, name: str) -> Key:
    return key_of(seed, f"placebo {model.content_sha256()}", name)


def _is_plain(change: Change) -> bool:
    """Whether a change is B·A alone, of a whole live parameter."""
    return bool(change.a and change.b) and not (change.magnitude or change.replacement or change.index)


def _content(form: str, seed: int, base: Checkpoint, model: Checkpoint) -> str:
    text = json.dumps(["placebo", VERSION, form, seed, base.content_sha256(), model.content_sha256()])
    return hashlib.sha256(text.encode()).hexdigest()


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
