"""nuslerp: spherical interpolation by weights, between two models or their task vectors (Shoemake 1985)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.combinations import combine, contract, cosines
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import MergekitForm, Param

PARALLEL = 1e-12  # sin²Ω up to which the arc is replaced by the chord; only antiparallel vectors differ visibly there


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ = Σⱼ ∂cⱼ/∂wᵢ ⟨dL/dθ, xⱼ⟩ for the merge c₁x₁ + c₂x₂."""
    slopes = contract(*_turned(base, parents, p), p, _turn(grad, p), _arc, p.each("weight"), by_row=_by_row(p))
    return {"weight": slopes}


@merge_method(
    "nuslerp",
    paper="doi:10.1145/325165.325242",
    summary="Interpolates between two models on the sphere by weights; with a base, between their changes.",
    models=(2, 2),
    parameters={
        "weight": Param(0.0, 1.5, per_model=True),
        "nuslerp_flatten": Param(default=True, kind="bool"),
        "nuslerp_row_wise": Param(default=False, kind="bool"),
    },
    mergekit=MergekitForm("nuslerp"),
    differentiable=("weight",),
    derivative=derivative,
)
def nuslerp(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return sin((1−t)Ω)/sinΩ · x₁ + sin(tΩ)/sinΩ · x₂ with t = w₂ / (w₁ + w₂), plus θ₀ if there is a base.

    xᵢ is τᵢ = θᵢ − θ₀ with a base, else θᵢ; Ω is the angle between the two. With `nuslerp_flatten` a tensor is one
    vector. Without, every vector along the last dimension has its own Ω or, with `nuslerp_row_wise`, every vector along
    the first dimension. Parallel and antiparallel vectors are interpolated linearly.

    Raises:
        CandidateError: The weights sum to zero.
    """
    merged = combine(*_turned(base, parents, p), replace(p, sink=None), _arc, p.each("weight"), by_row=_by_row(p))
    return _turn(merged, p)


def _by_row(p: Parameters) -> bool:
    return not p["nuslerp_flatten"]


def _turn(tensor: Tensor, p: Parameters) -> Tensor:
    """Exchange first and last dimension, where vectors along the first dimension are interpolated."""
    if not (_by_row(p) and p["nuslerp_row_wise"]) or tensor.dim() < 2:
        return tensor
    return tensor.transpose(0, -1).contiguous()


def _turned(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> tuple[Tensor | None, list[Tensor]]:
    return (None if base is None else _turn(base, p)), [_turn(theta, p) for theta in parents]


def _arc(gram: Tensor, weights: Tensor) -> Tensor:
    """Return the coefficients of both vectors: (..., 2)."""
    total = weights.sum()
    if total.abs() <= 1e-6 * weights.abs().sum():
        reason = f"nuslerp: weights {weights.tolist()} sum to {total.item():g}, which divides the second one"
        raise CandidateError("materialize", reason)
    t = weights[1] / total
    cosine = cosines(gram)[..., 0, 1]
    parallel = 1 - cosine.square() <= PARALLEL
    angle = torch.where(parallel, 0.0, cosine).acos()  # Ω
    first = torch.where(parallel, 1 - t, ((1 - t) * angle).sin() / angle.sin())
    second = torch.where(parallel, t, (t * angle).sin() / angle.sin())
    return torch.stack([first, second], dim=-1)
