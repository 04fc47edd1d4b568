"""arcee_fusion: take over the changes of another model that matter most (Arcee AI)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evosearch.merging.kernels import at_least_float32, elementwise, row_length, row_sums
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import MergekitForm

FLOOR = 1e-8  # added to probabilities before their logarithm
QUARTILES = (0.25, 0.5, 0.75)


@merge_method(
    "arcee_fusion",
    paper="https://arcee.ai",
    summary="Takes over only the most important changes of one other model; nothing to tune.",
    needs_base=True,
    models=(1, 1),
    parameters={},
    mergekit=MergekitForm("arcee_fusion"),
)
def arcee_fusion(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + τ where the importance is at least q₂ + 1.5 (q₃ − q₁), else θ₀, with τ = θ₁ − θ₀.

    The importance of an entry is |τ| · KL(softmax θ₁ ‖ softmax θ₀) of its row, the vector along the last dimension,
    with 10⁻⁸ added to all probabilities. q₁, q₂ and q₃ are its quartiles over the tensor: of n sorted values, those
    with the indices ⌊(n−1)/4⌋, ⌊(n−1)/2⌋ and ⌊3(n−1)/4⌋. mergekit estimates them from a sample if n > 10⁶.
    """
    assert base is not None
    dtype, length = at_least_float32(p.dtype), row_length(base)
    found = elementwise(lambda _, ends: _importance(ends[0], ends[1], length), (base, parents[0]), dtype, length)
    first, median, third = _quartiles(found.view(-1))
    threshold = (median + 1.5 * (third - first)).to(base.device)
    source = found.view(-1)

    def fuse(start: int, ends: list[Tensor]) -> Tensor:
        kept = source[start : start + ends[0].numel()] >= threshold
        return (ends[1] - ends[0]).mul_(kept).add_(ends[0])  # NaN stays NaN

    return elementwise(fuse, (base, parents[0]), p.dtype, sink=p.sink)


def _importance(theta_0: Tensor, theta: Tensor, length: int) -> Tensor:
    """Return |τ| · KL of complete rows."""
    q, r = [(end.view(-1, length).softmax(dim=1) + FLOOR) for end in (theta_0, theta)]
    divergence = row_sums(r * (r / q).log()).to(theta.dtype)  # (rows,)
    return ((theta - theta_0).abs_().view(-1, length) * divergence[:, None]).view(-1)


def _quartiles(values: Tensor) -> list[Tensor]:
    """Return the quartiles of flat values, on the CPU."""
    ranks = [int(share * (values.numel() - 1)) for share in QUARTILES]
    if values.device.type != "cpu":
        return [values.kthvalue(rank + 1).values.cpu() for rank in ranks]
    return list(torch.from_numpy(np.partition(values.numpy(), ranks)[ranks]))  # selects all three in one pass
