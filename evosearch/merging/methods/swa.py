"""swa: mean of several checkpoints of one training run (stochastic weight averaging, Izmailov et al. 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evosearch.merging.kernels import elementwise
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method


@merge_method(
    "swa",
    paper="arXiv:1803.05407",
    summary="Averages checkpoints of one training run, which often generalizes better than the last one.",
    takes_base=False,
    parameters={},
)
def swa(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return the running mean of the θᵢ: θ̄ₙ = θ̄ₙ₋₁ + (θₙ − θ̄ₙ₋₁) / n  (Izmailov et al. 2018, algorithm 1).

    The mean is computed in float64 and rounded once. `checkpoints` in a recipe lists the models.
    """

    def mean(_: int, thetas: list[Tensor]) -> Tensor:
        running = thetas[0].clone()
        for n, theta in enumerate(thetas[1:], start=2):
            running.add_(theta - running, alpha=1 / n)
        return running

    return elementwise(mean, parents, torch.float64).to(p.dtype)
