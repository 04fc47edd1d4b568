"""Destination of a merge: the tensor that it is written into, chunk by chunk."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sink:
    """Destination of one merged tensor, so that no float32 copy of it is made.

    Attributes:
        tensor: Where the result goes; contiguous. It shares no memory with an input.
        dtype: Type that results are rounded to before they are stored.
        largest: Largest magnitude of the stored values, NaN if one of them is; None if not known.
    """

    tensor: Tensor
    dtype: torch.dtype
    largest: float | None = None

    def write(self, start: int, values: Tensor) -> None:
        """Store a chunk that begins at index `start`."""
        self.tensor.view(-1)[start : start + values.numel()] = values.to(self.dtype)

    def take(self, merged: Tensor) -> None:
        """Store a result that was not written here."""
        if merged is not self.tensor:
            self.tensor.copy_(merged.to(self.dtype))
            self.largest = None

    def extremes(self) -> Tensor:
        """Return two values (2,), on the tensor's device, that are finite exactly if all stored values are."""
        if self.largest is not None:
            return torch.full((2,), self.largest)
        return torch.stack(torch.aminmax(self.tensor)).float()
