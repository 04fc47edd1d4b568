"""What a merge method is given besides tensors: its parameters as they are at one tensor."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evosearch.recipe.shapes import Scalar


@dataclass(frozen=True)
class Parameters:
    """A method's parameters at one tensor.

    Attributes:
        shared: parameter → its value, for those that the whole merge has once.
        own: parameter → one value a parent, in the parents' order.
        dtype: the type the arithmetic is done in, and the result's.
    """

    shared: Mapping[str, Scalar]
    own: Mapping[str, tuple[Scalar, ...]]
    dtype: torch.dtype = torch.float32

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
