"""Folding of a hop's scale into weights, so that a route can be stored as a standard checkpoint.

With C_k the product of the scales of hops 1..k, hop k is defined as h ← h + F_k(h) / C_k. Dividing the weights that
write to the residual stream stores this exactly. Up to the epsilon of its norm, a folded pre-norm layer equals a layer
with a scaled input, as in arXiv:2403.13187, section 3.2, because h / C and h have the same normalized value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fold:
    """Transformation of one tensor of a hop.

    Attributes:
        divisor: C_k if the tensor writes to the residual stream, else 1.
        offset: What the model adds to the stored tensor before it multiplies by it (`Family.writer_offset`).
    """

    divisor: float = 1.0
    offset: float = 0.0

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the folded weight in float32, or the weight itself if the divisor is 1."""
        if self.divisor == 1.0:
            return weight
        full = weight.to(torch.float32)
        # A tensor on the device: for a Python number, CUDA multiplies by the reciprocal, which rounds differently.
        divisor = torch.tensor(self.divisor, dtype=torch.float32, device=full.device)
        return (self.offset + full) / divisor - self.offset if self.offset else full / divisor
