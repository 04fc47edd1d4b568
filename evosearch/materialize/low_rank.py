"""A matrix as the product of two thin ones: the best of a given rank, or fewer where it has fewer."""

from dataclasses import dataclass

import torch

EXACT_UP_TO = 512  # the smaller side of a matrix whose full SVD takes a fraction of a second
OVERSAMPLING = 16  # columns beyond the rank that the random projection keeps
PASSES = 4  # over the matrix, each sharpening the subspace
EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class LowRank:
    """delta ≈ b @ a.

    Attributes:
        a: (r, in), float32.
        b: (out, r), float32; its columns are as long as a's rows.
        lost: ‖delta − b @ a‖, measured.
        size: ‖delta‖. Both are Frobenius norms.
    """

    a: torch.Tensor
    b: torch.Tensor
    lost: float
    size: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def error(self) -> float:
        """‖delta − b @ a‖ / ‖delta‖, 0 for a matrix of zeros."""
        return self.lost / self.size if self.size else 0.0


def factorize(delta: torch.Tensor, rank: int, noise: float, generator: torch.Generator) -> LowRank:
    """The truncated SVD of a matrix (Eckart and Young 1936), its singular values shared between both factors.

    Args:
        delta: (out, in), float32.
        rank: at most; directions with a singular value within the noise are left out, but one always remains.
        noise: standard deviation of the rounding errors in delta's entries.
        generator: draws the random projection that large matrices are first reduced by.
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
    """U (out, k), s (k,), vh (k, in): all of it for small matrices, the leading part for large ones."""
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
