"""Parameters of a merge method, evaluated at one tensor, and facts remembered between candidates."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from evosearch.merging.sink import Sink
from evosearch.recipe.shapes import Scalar

T = TypeVar("T")


class Memory:
    """Cache of facts about input tensors, which do not change between candidates.

    The owner of the tensors owns the memory. A method must return the same result without one.

    Args:
        limit_bytes: Total size of large facts, whose size grows with the tensors.
    """

    def __init__(self, limit_bytes: int = 2 << 30) -> None:
        self._facts: dict[Any, Any] = {}
        self._left = limit_bytes

    def recall(self, key: Any, find: Callable[[], T]) -> T:
        """Return the fact of that key; call `find` the first time."""
        if key not in self._facts:
            self._facts[key] = find()
        found: T = self._facts[key]
        return found

    def reserve(self, size: int) -> bool:
        """Reserve `size` bytes for a large fact; return False if the limit does not allow it."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def within(self, prefix: Hashable) -> "Memory":
        """Return a view whose keys have a prefix, for facts about inputs that were changed by one rule."""
        return _Within(self, prefix)


class _Within(Memory):
    """View of a memory, with its limit."""

    def __init__(self, outer: Memory, prefix: Hashable) -> None:
        self._outer, self._prefix = outer, prefix

    def recall(self, key: Any, find: Callable[[], T]) -> T:
        """Return the fact of the prefixed key."""
        return self._outer.recall((self._prefix, key), find)

    def reserve(self, size: int) -> bool:
        """Reserve bytes of the outer memory."""
        return self._outer.reserve(size)


@dataclass(frozen=True)
class Origin:
    """The model and the name of an input tensor: the key of random masks and remembered facts.

    Attributes:
        content_sha256: Content hash of the model, or "" if the method does not need it.
        tensor: The tensor's name in that model.
    """

    content_sha256: str
    tensor: str


@dataclass(frozen=True)
class Parameters:
    """A method's parameters at one tensor.

    Attributes:
        shared: Parameter → value, for parameters with one value for all models.
        own: Parameter → one value per parent, in the parents' order.
        dtype: Type of the arithmetic and of the result.
        seed: The recipe's seed.
        base: Origin of the base's tensor, None without a base.
        parents: Origin of each parent's tensor.
        survey: This tensor's entry of the method's survey; None if the method has no survey.
        memory: Cache that outlives this merge, or None.
        statistics: The method's statistic at this tensor, float32: of the base if the method takes one, then of each
            parent; empty where there is none. `fisher`: Fᵢ ≥ 0, of the tensor's shape. Of linear layers only, whose
            weights are given as (out, in): `gram`: Gᵢ = XᵀX/n (in, in) of their inputs; `propagated_gram`: the same
            of inputs that have passed the merged earlier layers; `inputs`: X (n, in) of the sample's first tokens.
        sample: Key of the sample that the statistics are over, which names facts about them; empty without statistics.
        head_size: Dimensions of an attention head of the first parent; 0 if the config does not tell.
        sink: Where a merge may write its result instead of into a new tensor, or None.
    """

    shared: Mapping[str, Scalar]
    own: Mapping[str, tuple[Scalar, ...]]
    dtype: torch.dtype = torch.float32
    seed: int = 0
    base: Origin | None = None
    parents: tuple[Origin, ...] = ()
    survey: Any = None
    memory: Memory | None = field(default=None, compare=False, repr=False)
    statistics: tuple[Tensor, ...] = field(default=(), compare=False, repr=False)
    sample: str = ""
    head_size: int = 0
    sink: Sink | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> float:
        """Return a shared number; a boolean counts as 0 or 1."""
        value = self.shared[name]
        assert not isinstance(value, str), f"'{name}' is not a number"
        return float(value) if isinstance(value, float) else value  # never a `Dual`

    def choice(self, name: str) -> str:
        """Return the name of a shared choice."""
        return str(self.shared[name])

    def each(self, name: str) -> list[float]:
        """Return one number per parent, in the parents' order."""
        return [float(value) for value in self.own[name]]

    def recall(self, key: Any, find: Callable[[], T]) -> T:
        """Return a fact that does not depend on parameter values; see `Memory`."""
        return find() if self.memory is None else self.memory.recall(key, find)

    def recall_of(self, parent: int, what: str, find: Callable[[], T]) -> T:
        """Return a fact about one parent's difference from the base at this tensor, in the arithmetic's type."""
        key = self._difference(parent)
        return find() if self.memory is None or key is None else self.memory.recall((what, *key), find)

    def recall_of_all(self, what: str, with_base: bool, find: Callable[[], T]) -> T:
        """Return a fact about all parents at this tensor, or about all of their differences from the base."""
        origins = (*self.parents, *([self.base] if with_base else []))
        named = bool(self.parents) and all(origin is not None and origin.content_sha256 for origin in origins)
        return self.memory.recall((what, with_base, *origins), find) if self.memory is not None and named else find()

    def reserve(self, parent: int, size: int) -> bool:
        """Reserve `size` bytes for a fact that `recall_of` is finding; return False if it will not be kept."""
        return self.memory is not None and self._difference(parent) is not None and self.memory.reserve(size)

    def _difference(self, parent: int) -> tuple[Origin, Origin, torch.dtype] | None:
        """Return the key of θ − θ₀, or None if a content hash is missing: unnamed models would share one key."""
        if self.base is None or not self.parents:
            return None
        base, theta = self.base, self.parents[parent]
        return (base, theta, self.dtype) if base.content_sha256 and theta.content_sha256 else None
