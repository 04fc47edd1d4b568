"""task_arithmetic: add task vectors to the base (Ilharco et al. 2023)."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.kernels import elementwise
from evosearch.merging.parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import Param


@merge_method(
    "task_arithmetic",
    paper="arXiv:2212.04089",
    needs_base=True,
    parameters={
        "weight": Param(0.0, 1.5, per_model=True),
        "normalize": Param(default=False, kind="bool"),
        "lambda": Param(0.0, 2.0, default=1.0),
    },
)
def task_arithmetic(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """θ₀ + λ Σ wᵢτᵢ with τᵢ = θᵢ − θ₀; `normalize` divides by Σ wᵢ. Weights may be negative.

    Raises:
        CandidateError: weights that are not all zero sum to nothing under `normalize`.
    """
    assert base is not None
    scales = _scales(p)

    def add(_: int, chunks: list[Tensor]) -> Tensor:
        theta_0, *thetas = chunks
        moved = (thetas[0] - theta_0).mul_(scales[0])
        for theta, scale in zip(thetas[1:], scales[1:], strict=True):
            moved.add_(theta - theta_0, alpha=scale)  # λ Σ wᵢτᵢ
        return moved.add_(theta_0)

    return elementwise(add, (base, *parents), p.dtype)


def _scales(p: Parameters) -> list[float]:
    """λwᵢ, or λwᵢ / Σw under `normalize`; all-zero weights stay zero, so that they leave the base as it is."""
    weights, total = p.each("weight"), 1.0
    if p["normalize"] and any(weights):
        total = sum(weights)
        if abs(total) <= 1e-6 * sum(abs(w) for w in weights):
            reason = f"task_arithmetic: weights {weights} sum to {total:g}, which normalize divides by"
            raise CandidateError("materialize", reason)
    return [p["lambda"] * w / total for w in weights]
