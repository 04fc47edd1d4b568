"""Checkpoint that computes some of its tensors on load, for applied adapters and changed vocabularies."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from evosearch.checkpoints.reader import Checkpoint, TensorInfo
from evosearch.recipe.shapes import ModelShape

Factors = Callable[[], tuple[torch.Tensor, torch.Tensor]]  # loads A (r, in) and s·B (out, r), in float32 or float64
Computed = tuple[TensorInfo, Callable[[], torch.Tensor]]  # (header, function that computes the tensor)


class Overlay(Checkpoint):
    """View of a checkpoint with some tensors replaced; folder and family stay the same.

    Args:
        under: The underlying checkpoint.
        reference: Reference used in recipes.
        content: Returns content_sha256, which must be a function of the contents of all inputs.
        replaced: Tensor → header and function, for the replaced tensors. Results are not cached.
        config: config.json; default: that of `under`.
        tokenizer: Folder of tokenizer and chat template; default: that of `under`.
        factors: Replaced tensor → its change as factors, where it is the weight in `under` plus s·B·A.
    """

    def __init__(
        self,
        under: Checkpoint,
        reference: str,
        content: Callable[[], str],
        replaced: Mapping[str, Computed],
        config: Mapping[str, Any] | None = None,
        tokenizer: Path | None = None,
        factors: Mapping[str, Factors] | None = None,
    ) -> None:
        self.reference, self.folder, self.family = reference, under.folder, under.family
        self.config = under.config if config is None else config
        self.shape: ModelShape = under.shape
        self.tensors = {**under.tensors, **{name: info for name, (info, _) in replaced.items()}}
        self._under, self._content, self._replaced = under, content, replaced
        self._tokenizer, self._factors = tokenizer or under.tokenizer_folder, factors or {}
        self.notes = under.notes

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of tokenizer and chat template."""
        return self._tokenizer

    @property
    def computed(self) -> Mapping[str, Computed]:
        """Replaced tensor → its header and function."""
        return self._replaced

    def with_computed(self, computed: Mapping[str, Computed]) -> "Overlay":
        """Return the same checkpoint with other functions, which must return the same tensors."""
        headers = {name: info for name, (info, _) in computed.items()}
        assert headers == {name: self.tensors[name] for name in self._replaced}
        other = copy.copy(self)
        other._replaced = computed
        return other

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, computed or memory-mapped: do not write to it."""
        if name in self._replaced:
            return self._replaced[name][1]()
        return self._under.load(name)

    def shares(self, name: str) -> Checkpoint | None:
        """Return the checkpoint that a tensor is taken from; None if it is replaced."""
        return None if name in self._replaced else (self._under.shares(name) or self._under)

    def low_rank(self, name: str) -> tuple[Checkpoint, Factors] | None:
        """Return the checkpoint whose tensor is changed and the change; None if the change is not of low rank."""
        if name in self._factors:
            return self._under, self._factors[name]
        under = self._under
        return under.low_rank(name) if name not in self._replaced and isinstance(under, Overlay) else None

    def content_sha256(self) -> str:
        """Return a hash that identifies the weights; computing it may read all inputs."""
        return self._content()
