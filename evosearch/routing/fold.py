"""What a hop's scale makes of a weight: the route, folded into a stock checkpoint.

With C_k the product of the scales of hops 1..k, hop k is defined as h ← h + F_k(h) / C_k. That is stored exactly by
dividing all that writes to the residual stream. Up to the epsilon of its norm, a pre-norm layer so folded is one whose
input is scaled, as in arXiv:2403.13187, section 3.2: h / C and h have the same normed value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fold:
    """How one tensor of a hop is stored.

    Attributes:
        divisor: C_k where the tensor writes to the residual stream, else 1: it stays as it is.
        offset: what the model adds to the stored tensor before it multiplies by it (`Family.writer_offset`).
    """

    divisor: float = 1.0
    offset: float = 0.0

    def __call__(self, weight: Tensor) -> Tensor:
        """The folded weight in float32; the weight itself, in its own type, where there is nothing to divide."""
        if self.divisor == 1.0:
            return weight
        full = weight.to(torch.float32)
        # A tensor on the device: by a plain number, CUDA multiplies with its reciprocal, which rounds otherwise
        divisor = torch.tensor(self.divisor, dtype=torch.float32, device=full.device)
        return (self.offset + full) / divisor - self.offset if self.offset else full / divisor
