"""tsv_m: add the orthogonalized top singular vectors of every task vector (Gargiulo et al. 2025)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from evosearch.merging.matrices import add_merged, contract_merged, orthogonalized, significant
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import Param


def _merged(taus: list[Tensor]) -> Tensor:
    count = max(1, min(taus[0].shape) // len(taus))
    tops = [significant(tau) for tau in taus]
    left = torch.cat([u[:, :count] for u, _, _ in tops], dim=1)  # (m, up to T · count)
    right = torch.cat([v[:count] for _, _, v in tops])  # (up to T · count, n)
    values = torch.cat([s[:count] for _, s, _ in tops])
    if not len(values):
        return torch.zeros_like(taus[0])
    return orthogonalized(left) * values @ orthogonalized(right)  # U⊥ diag(s) V⊥ᵀ


@merge_method(
    "tsv_m",
    paper="arXiv:2412.00081",
    summary="Adds many full fine-tunes of different tasks, whose main directions it makes orthogonal to each other.",
    needs_base=True,
    parameters={"scale": Param(0.0, 2.0, default=1.0)},
    differentiable=("scale",),
    derivative=partial(contract_merged, "tsv_m", merged=_merged),
    norms=True,
)
def tsv_m(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + scale · U⊥ diag(s) V⊥ᵀ for a matrix, and θ₀ + scale · the mean of the τᵢ for another tensor.

    Of T task vectors τᵢ = θᵢ − θ₀ with r = min(m, n), each has its top max(1, ⌊r/T⌋) singular values s and vectors,
    without those that are zero; their vectors, side by side, are U and V. U⊥ and V⊥ are the nearest matrices with
    orthonormal columns, the solution of the Procrustes problem (Gargiulo et al. 2025, algorithm 1). Singular values and
    vectors are computed as `matrices.py` says.

    Raises:
        CandidateError: An input matrix is not finite.
    """
    assert base is not None
    return add_merged("tsv_m", base, parents, p, _merged)
