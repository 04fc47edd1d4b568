"""Counter-based Gaussian noise: the Box-Muller transform of the lanes of Philox (`philox.py`).

Element i of a tensor, in row-major order, is made of lanes 2i and 2i + 1 of the tensor's key:

    z = √(−2 ln u) · cos(2π v),    u = (lane₂ᵢ + ½) / 2³²,    v = (lane₂ᵢ₊₁ + ½) / 2³²

So it is independent of chunks, order and other tensors, like the masks.
"""

import math

import torch
from torch import Tensor

from evosearch.merging.philox import Key, lanes

CHUNK = 2**20  # elements in memory at once
_TWO_32 = 2.0**32


def normal(key: Key, start: int, count: int) -> Tensor:
    """Return standard normal numbers of `count` elements from index `start` on: (count,) float64."""
    pairs = (lanes(key, 2 * start, 2 * count).view(count, 2).double() + 0.5) / _TWO_32
    radius = (-2.0 * pairs[:, 0].log()).sqrt()
    return radius * (2.0 * math.pi * pairs[:, 1]).cos()


def noise(key: Key, shape: tuple[int, ...], norm: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return Gaussian noise of a shape, scaled to a Frobenius norm.

    Args:
        key: Key of the tensor, from `philox.key_of`.
        shape: Shape of the result.
        norm: Its Frobenius norm.
        dtype: Its type.
    """
    found = torch.empty(math.prod(shape), dtype=dtype)
    square = 0.0
    for start in range(0, found.numel(), CHUNK):
        part = normal(key, start, min(CHUNK, found.numel() - start))
        square += float(part.square().sum())
        found[start : start + len(part)] = part
    return found.mul_(norm / math.sqrt(square) if square else 0.0).view(shape)
