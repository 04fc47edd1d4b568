"""Merges that treat a tensor with two dimensions as a matrix: their singular vectors and linear systems.

Everything is computed in float64 on the CPU, with one thread: LAPACK's results depend on the number of threads. So the
bits are equal for any number of threads on one machine, and for tensors on any device. Other machines may differ in
the last bits of float64, which rounding to float32 hides but for ties. A decomposition takes min(m, n)² · max(m, n)
operations, and is remembered between candidates.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.kernels import at_least_float32, elementwise, one_thread, total
from evosearch.merging.method_parameters import Parameters

Merged = Callable[[list[Tensor]], Tensor]  # matrices τᵢ (m, n), float64 on the CPU → their merge (m, n)


def add_merged(name: str, base: Tensor, parents: Sequence[Tensor], p: Parameters, merged: Merged) -> Tensor:
    """Return θ₀ + scale · `merged`(τ₁, τ₂, …) for a matrix, and θ₀ + scale · the mean of the τᵢ for other tensors.

    Args:
        name: Name of the method, for errors and the memory.
        base: θ₀.
        parents: θᵢ.
        p: Parameters; `scale` is used.
        merged: Merges matrices.

    Raises:
        CandidateError: An entry is not finite, or `merged` has no solution.
    """
    scale, found = p["scale"], _change(name, base, parents, p, merged)
    return elementwise(lambda _, parts: (parts[1] * scale).add_(parts[0]), (base, found), p.dtype, sink=p.sink)


def contract_merged(
    name: str, base: Tensor, parents: Sequence[Tensor], p: Parameters, grad: Tensor, merged: Merged
) -> dict[str, float]:
    """Return dL/dscale of `add_merged`: ⟨dL/dθ, merged τ⟩."""
    found = _change(name, base, parents, p, merged)
    return {"scale": total(lambda _, pair: pair[0] * pair[1], (grad, found), at_least_float32(p.dtype))}


def significant(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, r), the singular values (r,) in descending order, and Vᵀ (r, n).

    Vectors of singular values that are zero but for rounding are left out: they are arbitrary.
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > s.max() * max(matrix.shape) * torch.finfo(s.dtype).eps).sum())
    return u[:, :rank], s[:rank], v[:rank]


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns or rows (orthogonal Procrustes problem): UVᵀ."""
    u, _, v = significant(matrix)
    return u @ v


def _change(name: str, base: Tensor, parents: Sequence[Tensor], p: Parameters, merged: Merged) -> Tensor:
    """Return the merge of the task vectors, from the memory if it is there."""
    if base.dim() != 2:
        share = 1 / len(parents)
        return elementwise(lambda _, ends: _mean(ends, share), (base, *parents), p.dtype)

    def find() -> Tensor:
        taus = [theta.double().cpu() - base.double().cpu() for theta in parents]
        if not all(bool(tau.isfinite().all()) for tau in taus):
            raise CandidateError("materialize", f"{name}: an input tensor is not finite")
        with one_thread():
            return merged(taus).to(base.device, at_least_float32(p.dtype))

    def kept() -> Tensor | None:
        size = base.numel() * at_least_float32(p.dtype).itemsize
        return find() if p.memory is not None and p.memory.reserve(size) else None

    known = p.recall_of_all(f"{name} {p.dtype}", True, kept)
    return find() if known is None else known


def _mean(ends: Sequence[Tensor], share: float) -> Tensor:
    summed = ends[1] - ends[0]
    for theta in ends[2:]:
        summed.add_(theta - ends[0])
    return summed.mul_(share)
