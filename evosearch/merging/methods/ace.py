"""ace: average task vectors weighted by input covariances that are estimated from them (Xu et al. 2026)."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.matrices import add_merged, contract_merged
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import Param

TINY = 1e-12  # added to traces and to the mean of their logarithms, as in the authors' code


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dscale."""
    return contract_merged(_name(p), base, parents, p, grad, partial(_merged, p))


@merge_method(
    "ace",
    paper="arXiv:2603.02945",
    summary="Averages fine-tunes of different tasks as RegMean does, with covariances estimated without data.",
    needs_base=True,
    parameters={
        "eps": Param(1e-4, 1.0, default=1e-2, strict=True),
        "threshold": Param(0.0, 1.0, default=0.3),
        "k_frac": Param(0.0, 1.0, default=0.3, strict=True),
        "scale": Param(0.0, 2.0, default=1.0),
    },
    differentiable=("scale",),
    derivative=derivative,
    norms=True,
)
def ace(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + scale · W for a matrix (out, in), and θ₀ + scale · the mean of the τᵢ for another tensor.

    As in the authors' code (unravel-xu/ACE-Merging): let Dᵢ be τᵢ = θᵢ − θ₀ minus the mean of its rows, Cᵢ = DᵢᵀDᵢ the
    estimate of the task's input covariance, Σᵢ = Cᵢ + eps·I, and c the mean of the rows of Σ Cᵢ. Then
    W = (Σ DᵢΣᵢ)(Σ Σᵢ + 1cᵀ)⁻¹. The tasks are heterogeneous if γ = Var(ln‖τᵢ‖²) / mean(ln‖τᵢ‖²)² is above `threshold`:
    then Cᵢ and eps are divided by tr Cᵢ, c also by the mean of the ‖τᵢ‖², and W gets the addend σ̄UVᵀ of the top
    ⌊k_frac·min(out, in)⌋ singular vectors of W + Σ τᵢ(Cᵢ − Σ Σⱼ/T) and the mean σ̄ of their singular values.

    A model that does not change the matrix has no covariance and takes no part. GPT-2 stores its matrices as (in, out):
    there the roles are exchanged. Computed as `matrices.py` says, in the memory of in² numbers.

    Raises:
        CandidateError: An input matrix is not finite, or the system has no solution.
    """
    assert base is not None
    return add_merged(_name(p), base, parents, p, partial(_merged, p))


def _name(p: Parameters) -> str:
    """Return the name under which the merge is remembered, which depends on the parameters."""
    return f"ace {p['eps']} {p['threshold']} {p['k_frac']}"


def _merged(p: Parameters, taus: list[Tensor]) -> Tensor:
    """Return W."""
    moved = [tau for tau in taus if tau.any()]
    if not moved:
        return torch.zeros_like(taus[0])
    squares = torch.stack([tau.square().sum() for tau in moved])
    apart = _heterogeneity(squares) > p["threshold"]
    eye = torch.eye(taus[0].shape[1], dtype=taus[0].dtype)
    centered = [tau - tau.mean(dim=0, keepdim=True) for tau in moved]  # Dᵢ
    covariances, ridged = [], []  # Cᵢ and Σᵢ
    for d in centered:
        raw = d.T @ d
        trace = raw.trace() + TINY if apart else raw.new_ones(())
        covariances.append(raw / trace)
        ridged.append(raw / trace + p["eps"] / trace * eye)
    whole = sum(ridged[1:], start=ridged[0])  # Σ Σᵢ
    common = sum(covariances[1:], start=covariances[0]).mean(dim=0, keepdim=True)  # cᵀ
    if apart:
        common = common / (squares.mean() + TINY)
    products = [d @ one for d, one in zip(centered, ridged, strict=True)]
    merged = _divided(sum(products[1:], start=products[0]), whole + common)
    return merged + _refinement(p, moved, covariances, whole / len(moved), merged) if apart else merged


def _heterogeneity(squares: Tensor) -> float:
    """Return γ of the squared norms; 0 for a single model."""
    logs = (squares + TINY).log()
    return float(logs.var() / (logs.mean().square() + TINY)) if len(logs) > 1 else 0.0


def _divided(b: Tensor, a: Tensor) -> Tensor:
    """Return b a⁻¹."""
    try:
        solved: Tensor = torch.linalg.solve(a, b, left=False)
    except RuntimeError:  # LAPACK met a pivot of zero
        raise CandidateError("materialize", "ace: the sum of the covariances is singular; raise eps") from None
    return solved


def _refinement(p: Parameters, taus: list[Tensor], covariances: list[Tensor], mean: Tensor, merged: Tensor) -> Tensor:
    """Return σ̄UVᵀ of the top singular vectors of W and the part of the τᵢ that it leaves out."""
    fused = merged.clone()
    for tau, covariance in zip(taus, covariances, strict=True):
        fused += tau @ (covariance - mean)
    u, s, v = torch.linalg.svd(fused, full_matrices=False)
    count = int(len(s) * p["k_frac"])
    return s[:count].mean() * (u[:, :count] @ v[:count]) if count else torch.zeros_like(merged)
