"""Inner products of a base tensor and of several changes of it, from which norms and cosines follow.

    gram[0, 0] = ⟨θ₀, θ₀⟩    gram[0, i] = ⟨θ₀, τᵢ⟩    gram[i, j] = ⟨τᵢ, τⱼ⟩

Sums of such matrices over tensors are the inner products of the concatenated tensors.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Gram = NDArray[np.float64]  # (1 + changes, 1 + changes), symmetric

CHUNK = 1 << 22  # elements that are converted to float64 at once: 32 MiB for each tensor


def change(model: Tensor, base: Tensor) -> Tensor:
    """Return τ = θ − θ₀ in float32, or in float64 if one of the two is."""
    dtype = torch.float64 if torch.float64 in (model.dtype, base.dtype) else torch.float32
    return model.to(dtype) - base.to(dtype)


def gram(base: Tensor, changes: Sequence[Tensor]) -> Gram:
    """Return the inner products of a base and its changes, summed in float64.

    Args:
        base: θ₀, of any shape.
        changes: τᵢ, each of the same shape.
    """
    flat = [base.reshape(-1), *(each.reshape(-1) for each in changes)]
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, len(flat[0]), CHUNK):
        rows = torch.stack([each[start : start + CHUNK].double() for each in flat])  # (1 + M, chunk)
        total += rows @ rows.T
    found: Gram = total.numpy()
    return found


def relative_change(gram: Gram, model: int) -> float:
    """Return ‖τᵢ‖ / ‖θ₀‖; infinite if only the base is zero, 0 if both are."""
    base, own = math.sqrt(max(gram[0, 0], 0.0)), math.sqrt(max(gram[model + 1, model + 1], 0.0))
    return own / base if base else (math.inf if own else 0.0)


def cosine_to_base(gram: Gram, model: int) -> float | None:
    """Return cos(θᵢ, θ₀) with θᵢ = θ₀ + τᵢ; None if one of the two is zero."""
    base, with_base, own = float(gram[0, 0]), float(gram[0, model + 1]), float(gram[model + 1, model + 1])
    return _cosine(base + with_base, base, base + 2 * with_base + own)


def cosine(gram: Gram, one: int, other: int) -> float | None:
    """Return cos(τᵢ, τⱼ); None if one of the two is zero."""
    return _cosine(*(float(gram[a + 1, b + 1]) for a, b in ((one, other), (one, one), (other, other))))


def _cosine(product: float, one: float, other: float) -> float | None:
    if one <= 0.0 or other <= 0.0:
        return None
    return max(-1.0, min(1.0, product / math.sqrt(one * other)))
