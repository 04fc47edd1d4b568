"""Checkpoint that computes some tensors on load: an applied adapter, a changed vocabulary."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from evosearch.checkpoints.reader import Checkpoint, TensorInfo
from evosearch.recipe.shapes import ModelShape

Made = tuple[TensorInfo, Callable[[], torch.Tensor]]  # (header, function that computes the tensor)


class Overlay(Checkpoint):
    """Another checkpoint with some tensors replaced; folder and family are the other checkpoint's.

    Args:
        under: The checkpoint that is changed.
        reference: Reference used in recipes.
        content: Returns its content_sha256, which must be a function of the contents of all its inputs.
        replaced: Tensor → header and function, for the tensors that differ. Computed tensors are not cached.
        config: config.json, if it differs.
        tokenizer: Folder of tokenizer and chat template, if it differs.
    """

    def __init__(
        self,
        under: Checkpoint,
        reference: str,
        content: Callable[[], str],
        replaced: Mapping[str, Made],
        config: Mapping[str, Any] | None = None,
        tokenizer: Path | None = None,
    ) -> None:
        self.reference, self.folder, self.family = reference, under.folder, under.family
        self.config = under.config if config is None else config
        self.shape: ModelShape = under.shape
        self.tensors = {**under.tensors, **{name: info for name, (info, _) in replaced.items()}}
        self._under, self._content, self._replaced = under, content, replaced
        self._tokenizer = tokenizer or under.tokenizer_folder
        self.notes = under.notes

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of tokenizer and chat template."""
        return self._tokenizer

    @property
    def made(self) -> Mapping[str, Made]:
        """The replaced tensors: header and function of each."""
        return self._replaced

    def with_made(self, made: Mapping[str, Made]) -> "Overlay":
        """Return the same checkpoint with other functions, which must compute the same tensors."""
        assert {name: info for name, (info, _) in made.items()} == {name: self.tensors[name] for name in self._replaced}
        other = copy.copy(self)
        other._replaced = made
        return other

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, computed or memory-mapped: do not write to it."""
        if name in self._replaced:
            return self._replaced[name][1]()
        return self._under.load(name)

    def shares(self, name: str) -> Checkpoint | None:
        """Return the checkpoint that this one has the tensor from; None if it is replaced."""
        return None if name in self._replaced else (self._under.shares(name) or self._under)

    def content_sha256(self) -> str:
        """Return the hash that stands for the weights; computing it may read all inputs."""
        return self._content()
