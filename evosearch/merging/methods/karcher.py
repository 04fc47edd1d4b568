"""karcher: weighted mean of the models' directions on the sphere (Karcher 1977, arXiv:2603.04972)."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.combinations import combine, contract, cosines, norms
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import MergekitForm, Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ = Σⱼ ∂cⱼ/∂wᵢ ⟨dL/dθ, θⱼ⟩ for the merge Σ cⱼθⱼ, through the iterations that were made."""
    return {"weight": contract(None, parents, p, grad, partial(_mean, p), p.each("weight"))}


@merge_method(
    "karcher",
    paper="arXiv:2603.04972",
    summary="Averages several models on the sphere, which preserves their norm; needs no base.",
    takes_base=False,
    parameters={
        "weight": Param(0.0, 1.5, default=1.0, per_model=True),
        "max_iter": Param(1, 100, default=10, kind="int", strict=True),
        "tol": Param(1e-8, 1e-3, default=1e-5, strict=True),
    },
    mergekit=MergekitForm("karcher", fixed={"weight": 1.0}),
    differentiable=("weight",),
    derivative=derivative,
)
def karcher(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return m · Σ wᵢ‖θᵢ‖ / Σ wᵢ, where m minimizes Σ wᵢ ∠(m, θᵢ)² on the unit sphere.

    m starts at the direction of Σ wᵢuᵢ with uᵢ = θᵢ / ‖θᵢ‖ and moves by exp_m(Σ wᵢ log_m(uᵢ) / Σ wᵢ), at most
    `max_iter` times, until the step is shorter than `tol`. Models whose norm is at most `tol` have no direction; if
    none has one, the result is Σ wᵢθᵢ / Σ wᵢ. If the directions cancel each other, m starts at the first model's.

    Raises:
        CandidateError: The weights sum to zero.
    """
    return combine(None, parents, p, partial(_mean, p), p.each("weight"))


def _mean(p: Parameters, gram: Tensor, weights: Tensor) -> Tensor:
    """Return the coefficient of every model: (K,)."""
    total, tol = weights.sum(), p["tol"]
    if total.abs() <= 1e-6 * weights.abs().sum():
        reason = f"karcher: weights {weights.tolist()} sum to {total.item():g}, which they are divided by"
        raise CandidateError("materialize", reason)
    shares, lengths = weights / total, norms(gram)
    directed = lengths > tol
    directed_share = (shares * directed).sum()
    if directed_share == 0:
        return shares
    alphas = shares * directed / directed_share
    units = _on_sphere(alphas, cosines(gram), directed, int(p["max_iter"]), tol)
    return units / torch.where(directed, lengths, 1.0) * (shares * lengths).sum()


def _on_sphere(alphas: Tensor, cosine: Tensor, directed: Tensor, steps: int, tol: float) -> Tensor:
    """Return the coefficients of the mean in the unit vectors uᵢ: (K,)."""
    mean = _unit(alphas, cosine, tol)
    if mean is None:
        mean = torch.zeros_like(alphas)
        mean[int(directed.nonzero()[0])] = 1.0
    for _ in range(steps):
        toward = torch.zeros_like(alphas)  # the step in the uᵢ
        back = torch.zeros((), dtype=alphas.dtype)  # and in m
        for i, projection in enumerate((cosine @ mean).clamp(-1.0, 1.0)):
            angle = projection.acos()
            if directed[i] and angle >= tol:
                pull = alphas[i] * angle / angle.sin()  # log_m(uᵢ) = angle / sin(angle) · (uᵢ − ⟨uᵢ, m⟩m)
                toward = toward + pull * torch.eye(len(alphas), dtype=alphas.dtype)[i]
                back = back + pull * projection
        step = toward - back * mean
        squared = step @ cosine @ step
        if not squared > tol**2:
            break
        length = squared.sqrt()
        mean = _unit(length.cos() * mean + length.sin() / length * step, cosine, tol)  # exp_m
        assert mean is not None, "exp_m of a unit vector is a unit vector"
    return mean


def _unit(vector: Tensor, cosine: Tensor, tol: float) -> Tensor | None:
    """Scale a combination of unit vectors to norm 1; None if its norm is below `tol`."""
    squared = vector @ cosine @ vector
    return None if squared < tol**2 else vector / squared.sqrt()
