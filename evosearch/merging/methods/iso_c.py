"""iso_c: add the sum of the task vectors with all singular values made equal (Marczak et al. 2025)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from evosearch.merging.matrices import add_merged, contract_merged, significant
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import Param


def _merged(taus: list[Tensor]) -> Tensor:
    summed = torch.stack(taus).sum(dim=0)
    u, s, v = significant(summed)
    return s.sum() / min(summed.shape) * (u @ v)


@merge_method(
    "iso_c",
    paper="arXiv:2502.04959",
    summary="Adds full fine-tunes of different tasks, with all directions of their sum at equal strength.",
    needs_base=True,
    parameters={"scale": Param(0.0, 2.0, default=1.0)},
    differentiable=("scale",),
    derivative=partial(contract_merged, "iso_c", merged=_merged),
    norms=True,
)
def iso_c(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + scale · σ̄UVᵀ for a matrix, and θ₀ + scale · the mean of the τᵢ for another tensor.

    U diag(σ) Vᵀ is the singular value decomposition of Σ τᵢ with τᵢ = θᵢ − θ₀, and σ̄ is the mean of all min(m, n)
    singular values (Marczak et al. 2025, section 4.1). Directions whose singular value is zero, which are arbitrary,
    stay zero. Computed as `matrices.py` says.

    Raises:
        CandidateError: An input matrix is not finite.
    """
    assert base is not None
    return add_merged("iso_c", base, parents, p, _merged)
