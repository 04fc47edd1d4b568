"""consensus_ta: add only those entries of the task vectors that matter to several tasks (Wang et al. 2024)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evosearch.merging.kernels import at_least_float32, elementwise, total
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dscale = ⟨dL/dθ, m Σ τᵢ⟩, with the consensus m held fixed."""
    assert base is not None

    def terms(_: int, chunks: list[Tensor]) -> Tensor:
        slope, *ends = chunks
        return slope * _agreed([end.to(p.dtype) for end in ends], p)  # decisions in the type of the merge

    return {"scale": total(terms, (grad, base, *parents), at_least_float32(p.dtype))}


@merge_method(
    "consensus_ta",
    paper="arXiv:2405.07813",
    summary="Adds many fine-tunes without the entries that serve a single task or none.",
    needs_base=True,
    models=(2, None),
    parameters={
        "k": Param(1, 64, default=2, kind="int", strict=True),
        "lambda": Param(0.0, 1.0, default=0.4),
        "scale": Param(0.0, 2.0, default=1.0),
    },
    differentiable=("scale",),
    derivative=derivative,
    norms=True,
)
def consensus_ta(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + scale · m Σ τᵢ, entry by entry, with τᵢ = θᵢ − θ₀  (Wang et al. 2024, TALL masks).

    m is 1 where at least `k` models have |τᵢ| ≥ lambda · |Σ τⱼ − τᵢ|, else 0: where `k` tasks agree that the entry is
    theirs. A larger `lambda` selects fewer entries for a task.
    """
    assert base is not None
    scale = p["scale"]
    return elementwise(
        lambda _, ends: _agreed(ends, p).mul_(scale).add_(ends[0]), (base, *parents), p.dtype, sink=p.sink
    )


def _agreed(ends: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return m Σ τᵢ of a chunk of θ₀ and θᵢ."""
    taus = [theta - ends[0] for theta in ends[1:]]
    summed = torch.zeros_like(ends[0])
    for tau in taus:
        summed.add_(tau)
    votes = torch.zeros_like(summed)
    for tau in taus:
        votes.add_((tau.abs() >= p["lambda"] * (summed - tau).abs()).to(votes.dtype))
    return summed.mul_(votes >= p["k"])  # NaN stays NaN
