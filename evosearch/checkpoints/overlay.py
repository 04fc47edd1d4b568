"""A checkpoint some of whose tensors are made when they are loaded: an adapter applied, a vocabulary changed."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from evosearch.checkpoints.reader import Checkpoint, TensorInfo
from evosearch.recipe.shapes import ModelShape

Made = tuple[TensorInfo, Callable[[], torch.Tensor]]  # what the tensor is, and how it is made


class Overlay(Checkpoint):
    """Another checkpoint's tensors, with some replaced. Folder, tokenizer and family are the other one's.

    Args:
        under: the checkpoint that is changed.
        reference: the name it was asked for by.
        content: what stands for its content_sha256; it must follow from the contents of all that went into it.
        replaced: tensor → what it is and how it is made, for those that differ. What is made is not kept.
        config: config.json, where it differs.
        tokenizer: where tokenizer and chat template lie, where that differs.
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
        return self._tokenizer

    @property
    def made(self) -> Mapping[str, Made]:
        """The tensors that differ from the checkpoint below: what each is, and how it is made."""
        return self._replaced

    def with_made(self, made: Mapping[str, Made]) -> "Overlay":
        """The same checkpoint, its own tensors made in another way that gives the same bytes."""
        assert {name: info for name, (info, _) in made.items()} == {name: self.tensors[name] for name in self._replaced}
        other = copy.copy(self)
        other._replaced = made
        return other

    def load(self, name: str) -> torch.Tensor:
        """One tensor on the CPU: made, or mapped from a file of the checkpoint below. Do not write to it."""
        if name in self._replaced:
            return self._replaced[name][1]()
        return self._under.load(name)

    def shares(self, name: str) -> Checkpoint | None:
        """The checkpoint whose tensor of that name this one's is, or None where it has its own."""
        return None if name in self._replaced else (self._under.shares(name) or self._under)

    def content_sha256(self) -> str:
        return self._content()
