"""Low-rank factorization of a matrix by truncated SVD."""

from dataclasses import dataclass

import torch

EXACT_UP_TO = 512  # smaller side of matrices whose full SVD takes a fraction of a second
OVERSAMPLING = 16  # extra columns of the random projection, beyond the rank
PASSES = 4  # power iterations; each sharpens the subspace
EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class LowRank:
    """Factors of a matrix: delta ≈ b @ a.

    Attributes:
        a: (r, in) float32.
        b: (out, r) float32; its columns have the same norms as the rows of `a`.
        lost: ‖delta − b @ a‖, a Frobenius norm.
        size: ‖delta‖, a Frobenius norm.
    """

    a: torch.Tensor
    b: torch.Tensor
    lost: float
    size: float

    @property
    def rank(self) -> int:
        """Return r."""
        return self.a.shape[0]

    @property
    def error(self) -> float:
        """Return ‖delta − b @ a‖ / ‖delta‖; 0 for a zero matrix."""
        return self.lost / self.size if self.size else 0.0


def factorize(delta: torch.Tensor, rank: int, noise: float, generator: torch.Generator) -> LowRank:
    """Compute the truncated SVD of a matrix (Eckart and Young 1936), with singular values split between both factors.

    Args:
        delta: (out, in) float32.
        rank: Maximum rank. Directions with a singular value below the noise are dropped, except for one.
        noise: Standard deviation of the rounding errors in delta's entries.
        generator: Draws the random projection by which large matrices are reduced.
    """
    out, inner = delta.shape
    u, s, vh = _svd(delta, rank, generator)
    # The largest singular value of a matrix of independent errors is about noise · (√out + √in).
    floor = max(float(s[0]) * EPS * max(out, inner), noise * (out**0.5 + inner**0.5))
    kept = max(1, min(rank, int((s > floor).sum())))
    root = s[:kept].sqrt()
    b, a = (u[:, :kept] * root).contiguous(), (root.unsqueeze(1) * vh[:kept]).contiguous()
    lost = torch.linalg.norm(delta - b @ a)
    return LowRank(a, b, float(lost), float(torch.linalg.norm(delta)))


def _svd(delta: torch.Tensor, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U (out, k), s (k,), vh (k, in): complete for small matrices, the leading part for large ones."""
    smaller, width = min(delta.shape), rank + OVERSAMPLING
    if smaller <= EXACT_UP_TO or 4 * width >= smaller:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        return u, s, vh
    # Randomized subspace iteration (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1).
    start = torch.randn((delta.shape[1], width), generator=generator)
    q = torch.linalg.qr(delta @ start).Q  # (out, width)
    for _ in range(PASSES):
        q = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ q).Q).Q
    u, s, vh = torch.linalg.svd(q.T @ delta, full_matrices=False)
    return q @ u, s, vh
