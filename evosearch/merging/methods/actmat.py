"""actmat: average task vectors weighted by the Gram matrices of the task vectors themselves (Hameed et al. 2026)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.matrices import add_merged, contract_merged
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import Param


def _name(p: Parameters) -> str:
    """Return the name under which the merge is remembered, which depends on the parameters."""
    return f"actmat {p['rtol']}"


def _merged(p: Parameters, taus: list[Tensor]) -> Tensor:
    """Return (Σ τᵢCᵢ)(Σ Cᵢ)⁺."""
    whole, top = torch.zeros_like(taus[0].T @ taus[0]), torch.zeros_like(taus[0])
    for tau in taus:
        covariance = tau.T @ tau
        whole += covariance
        top += tau @ covariance
    try:
        rounding = len(whole) * torch.finfo(whole.dtype).eps
        inverse: Tensor = torch.linalg.pinv(whole, hermitian=True, rtol=max(p["rtol"], rounding))
    except RuntimeError:  # LAPACK found no eigenvalues
        raise CandidateError("materialize", "actmat: the covariances cannot be decomposed") from None
    return top @ inverse


def _derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> dict[str, float]:
    """Return dL/dscale."""
    return contract_merged(_name(p), base, parents, p, grad, partial(_merged, p))


@merge_method(
    "actmat",
    paper="arXiv:2604.01329",
    summary="Averages fine-tunes of different tasks as RegMean does, each direction by whose changes are large there.",
    needs_base=True,
    parameters={"rtol": Param(0.0, 1.0, default=0.01, strict=True), "scale": Param(0.0, 2.0, default=1.0)},
    differentiable=("scale",),
    derivative=_derivative,
    norms=True,
)
def actmat(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + scale · (Σ τᵢCᵢ)(Σ Cᵢ)⁺ for a matrix (out, in), θ₀ + scale · the mean of the τᵢ for another tensor.

    τᵢ = θᵢ − θ₀, and Cᵢ = τᵢᵀτᵢ stands for the covariance of the task's inputs: under the paper's conditions, rows of a
    layer's change are combinations of the inputs that it was trained on. The result has the least interference
    Σ tr (W − τᵢ)Cᵢ(W − τᵢ)ᵀ, and of all such the least norm (⁺: pseudoinverse), so directions that nobody changes stay.
    As in the authors' code (marawangamal/actmat), but in float64, and eigenvalues of Σ Cᵢ below `rtol` of the largest
    count as zero. The code has no such parameter: its float32 cuts them at 1.2e-7 · in, and what is left of directions
    that are hardly changed is amplified without bound. GPT-2 stores its matrices as (in, out): there the roles are
    exchanged. Computed as `matrices.py` says, in the memory of in² numbers.

    Raises:
        CandidateError: An input matrix is not finite.
    """
    assert base is not None
    return add_merged(_name(p), base, parents, p, partial(_merged, p))
