"""model_stock: interpolation from the base toward the mean by the angle between fine-tunes (Jang et al. 2024)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evosearch.merging.combinations import combine, cosines
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import MergekitForm, Param

SINGULAR = 1e-6  # |1 + (N−1)cosφ| below which opposing changes determine no interpolation


@merge_method(
    "model_stock",
    paper="arXiv:2403.19522",
    summary="Averages several fine-tunes of one task and moves toward the base where they disagree; nothing to tune.",
    needs_base=True,
    models=(2, None),
    parameters={"filter_wise": Param(default=False, kind="bool")},
    mergekit=MergekitForm("model_stock"),
    norms=True,
)
def model_stock(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return t · mean(θᵢ) + (1−t) · θ₀ with t = N cosφ / (1 + (N−1) cosφ)  (Jang et al. 2024).

    N is the number of fine-tunes and cosφ the mean cosine of the pairs of τᵢ = θᵢ − θ₀, of a tensor or, with
    `filter_wise`, of each of its rows. A τᵢ of zeros has the cosine 0. Where 1 + (N−1) cosφ is zero, t is 0.
    """
    return combine(base, parents, p, _ratio, [1.0] * len(parents), by_row=bool(p["filter_wise"]))


def _ratio(gram: Tensor, weights: Tensor) -> Tensor:
    """Return t/N, the coefficient of every task vector: (..., N)."""
    count = len(weights)
    i, j = torch.triu_indices(count, count, offset=1)
    cosine = cosines(gram)[..., i, j].mean(dim=-1)  # cosφ
    divisor = 1 + (count - 1) * cosine
    singular = divisor.abs() < SINGULAR
    share = torch.where(singular, 0.0, cosine / torch.where(singular, 1.0, divisor))  # t/N
    return share.unsqueeze(-1).expand(*share.shape, count)
