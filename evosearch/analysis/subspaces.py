"""Overlap of the leading singular subspaces of task vectors.

    φ(U, V) = ‖Uᵀ V‖²_F / min(k, l)     U (m, k), V (m, l) orthonormal      (Hu et al. 2021, section 7.2)

1 if one subspace contains the other, and about max(k, l)/m for random ones. Left subspaces are of outputs, right ones
of inputs, for weights that are stored as (out, in).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EXACT = 256  # smaller side up to which the decomposition is exact
OVERSAMPLED = 8  # further directions of the sketch
POWERS = 2  # power iterations
SEED = 0

Method = Literal["exact", "randomized"]


@dataclass(frozen=True)
class Subspace:
    """The leading singular vectors of a matrix.

    Attributes:
        left: (m, k) orthonormal columns, float64.
        right: (n, k) orthonormal columns, float64.
        values: (k,) singular values, the largest first.
        method: How they were computed.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    method: Method


def subspace(change: Tensor, k: int) -> Subspace:
    """Return the k leading singular vectors, fewer if the matrix has a lower rank.

    Matrices whose smaller side is at most `EXACT` are decomposed exactly, larger ones by a randomized sketch with a
    fixed seed (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1), which is exact for ranks up to k + 8.

    Args:
        change: (m, n).
        k: Number of vectors.
    """
    matrix = change.double()
    if min(matrix.shape) <= EXACT:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        method: Method = "exact"
    else:
        left, values, right = _sketched(matrix, k + OVERSAMPLED)
        method = "randomized"
    threshold = torch.finfo(change.dtype).eps * max(matrix.shape) * float(values[0])
    rank = min(k, int((values > threshold).sum()))
    return Subspace(left[:, :rank], right[:rank].T.contiguous(), values[:rank], method)


def overlap(one: Tensor, other: Tensor) -> float | None:
    """Return φ of two orthonormal bases (m, k) and (m, l); None if one of them is empty."""
    smaller = min(one.shape[1], other.shape[1])
    return min(1.0, float((one.T @ other).square().sum()) / smaller) if smaller else None


def _sketched(matrix: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return an approximate decomposition of rank `size`."""
    drawn = torch.randn(matrix.shape[1], size, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    basis = torch.linalg.qr(matrix @ drawn).Q  # (m, size)
    for _ in range(POWERS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)  # (size, n)
    return basis @ left, values, right
