"""task_arithmetic: add task vectors to the base (Ilharco et al. 2023)."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Factors, Slope, merge_method
from evosearch.merging.sums import add_deltas, chain, contract_deltas, scales
from evosearch.recipe.shapes import MergekitForm, Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, from dL/dfᵢ = ⟨dL/dθ, τᵢ⟩ with the factors fᵢ = λwᵢ, or λwᵢ / Σw with `normalize`."""
    assert base is not None
    return chain(p, contract_deltas(base, parents, p, grad))


@merge_method(
    "task_arithmetic",
    paper="arXiv:2212.04089",
    summary="Adds skills of several fine-tunes, or removes one with a negative weight.",
    needs_base=True,
    parameters={
        "weight": Param(0.0, 1.5, per_model=True),
        "normalize": Param(default=False, kind="bool"),
        "lambda": Param(0.0, 2.0, default=1.0),
    },
    mergekit=MergekitForm("task_arithmetic"),
    differentiable=("weight", "lambda"),
    derivative=derivative,
    factors=Factors(partial(scales, "task_arithmetic"), chain),
    norms=True,
)
def task_arithmetic(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ Σ wᵢτᵢ with τᵢ = θᵢ − θ₀; `normalize` divides by Σ wᵢ. Weights may be negative.

    Raises:
        CandidateError: With `normalize`, weights that are not all zero sum to zero.
    """
    assert base is not None
    return add_deltas(base, parents, scales("task_arithmetic", p), p)  # θ₀ + λ Σ wᵢτᵢ
