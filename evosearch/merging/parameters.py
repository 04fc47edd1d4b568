"""What a merge method is given besides tensors: its parameters as they are at one tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from evosearch.recipe.shapes import Scalar

T = TypeVar("T")


class Memory:
    """What methods have found out about tensors that do not change between candidates.

    It belongs to whoever holds those tensors, and lives as long. A method must come to the same result without it.

    Args:
        limit_bytes: how much its large facts, those of a size that grows with the tensors, may take up.
    """

    def __init__(self, limit_bytes: int = 2 << 30) -> None:
        self._facts: dict[Any, Any] = {}
        self._left = limit_bytes

    def recall(self, key: Any, find: Callable[[], T]) -> T:
        """The fact of that key, found the first time."""
        if key not in self._facts:
            self._facts[key] = find()
        found: T = self._facts[key]
        return found

    def reserve(self, size: int) -> bool:
        """Take `size` bytes for a large fact; False where so many are not left."""
        if size > self._left:
            return False
        self._left -= size
        return True


@dataclass(frozen=True)
class Origin:
    """Which tensor of which model a parent's tensor is: what random masks and remembered facts are keyed by."""

    content_sha256: str  # of the model it comes from, "" where no method of the recipe asks
    tensor: str  # its name there


@dataclass(frozen=True)
class Parameters:
    """A method's parameters at one tensor.

    Attributes:
        shared: parameter → its value, for those that the whole merge has once.
        own: parameter → one value a parent, in the parents' order.
        dtype: the type the arithmetic is done in, and the result's.
        seed: the recipe's.
        base: where the base's tensor comes from, None without a base.
        parents: where each parent's tensor comes from.
        survey: what the method's `survey` made of the whole models for this tensor, None where it has none.
        memory: None where nothing outlives this merge.
    """

    shared: Mapping[str, Scalar]
    own: Mapping[str, tuple[Scalar, ...]]
    dtype: torch.dtype = torch.float32
    seed: int = 0
    base: Origin | None = None
    parents: tuple[Origin, ...] = ()
    survey: Any = None
    memory: Memory | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> float:
        """A shared number, or a switch as 0 or 1."""
        value = self.shared[name]
        assert not isinstance(value, str), f"'{name}' is no number"
        return value

    def choice(self, name: str) -> str:
        """A shared choice, by its name."""
        return str(self.shared[name])

    def each(self, name: str) -> list[float]:
        """One number for every parent, in the parents' order."""
        return [float(value) for value in self.own[name]]

    def recall(self, key: Any, find: Callable[[], T]) -> T:
        """A fact about the tensors that stays true for other parameters; see `Memory`."""
        return find() if self.memory is None else self.memory.recall(key, find)

    def recall_of(self, parent: int, what: str, find: Callable[[], T]) -> T:
        """A fact about one parent's difference from the base at this tensor, in the arithmetic's type."""
        key = self._difference(parent)
        return find() if self.memory is None or key is None else self.memory.recall((what, *key), find)

    def room_for(self, parent: int, size: int) -> bool:
        """Whether a fact that `recall_of` is finding may take up `size` bytes; False where nothing is remembered."""
        return self.memory is not None and self._difference(parent) is not None and self.memory.reserve(size)

    def _difference(self, parent: int) -> tuple[Origin, Origin, torch.dtype] | None:
        """What θ − θ₀ is known by, None where its ends are not: unnamed contents would be taken for one another."""
        if self.base is None or not self.parents:
            return None
        base, theta = self.base, self.parents[parent]
        return (base, theta, self.dtype) if base.content_sha256 and theta.content_sha256 else None
