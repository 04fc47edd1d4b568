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


def _merged(taus: list[Tensor]) -> Tensor:
    """Return (Σ τᵢCᵢ)(Σ Cᵢ)⁺."""
    whole, top = torch.zeros_like(taus[0].T @ taus[0]), torch.zeros_like(taus[0])
    for tau in taus:
        covariance = tau.T @ tau
        whole += covariance
        top += tau @ covariance
    try:
        inverse: Tensor = torch.linalg.pinv(whole, hermitian=True)
    except RuntimeError:  # LAPACK found no eigenvalues
        raise CandidateError("materialize", "actmat: the covariances cannot be decomposed") from None
    return top @ inverse


@merge_method(
    "actmat",
    paper="arXiv:2604.01329",
    summary="Averages fine-tunes of different tasks as RegMean does, each direction by whose changes are large there.",
    needs_base=True,
    parameters={"scale": Param(0.0, 2.0, default=1.0)},
    differentiable=("scale",),
    derivative=partial(contract_merged, "actmat", merged=_merged),
    norms=True,
)
def actmat(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + scale · (Σ τᵢCᵢ)(Σ Cᵢ)⁺ for a matrix (out, in), θ₀ + scale · the mean of the τᵢ for another tensor.

    τᵢ = θᵢ − θ₀, and Cᵢ = τᵢᵀτᵢ stands for the covariance of the task's inputs: under the paper's conditions, rows of a
    layer's change are combinations of the inputs that it was trained on. The result has the least interference
    Σ tr (W − τᵢ)Cᵢ(W − τᵢ)ᵀ, and of all such the least norm (⁺: pseudoinverse), so directions that nobody changes stay.
    As in the authors' code (marawangamal/actmat), but in float64. GPT-2 stores its matrices as (in, out): there the
    roles are exchanged. Computed as `matrices.py` says, in the memory of in² numbers.

    Raises:
        CandidateError: An input matrix is not finite.
    """
    assert base is not None
    return add_merged("actmat", base, parents, p, _merged)
