"""dare_linear: add randomly thinned task vectors to the base (Yu et al. 2024)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.dare import INEXACT, PARAMETERS, SPELLED, drops
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sparse import add_kept, contract_kept
from evosearch.recipe.shapes import MergekitForm


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, with the masks held fixed (`contract_kept`)."""
    assert base is not None
    return contract_kept(base, parents, p, grad, drops(base, parents, p))


@merge_method(
    "dare_linear",
    paper="arXiv:2311.03099",
    summary="Combines fine-tunes whose task vectors are redundant, by adding a random fraction of each.",
    needs_base=True,
    random=True,
    parameters=PARAMETERS,
    mergekit=MergekitForm("dare_linear", spelled=SPELLED, inexact=INEXACT),
    differentiable=("weight", "lambda"),
    derivative=derivative,
    norms=True,
)
def dare_linear(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ Σ wᵢ rᵢ mᵢτᵢ with τᵢ = θᵢ − θ₀; `normalize` divides by Σ wᵢ.

    The mask mᵢ keeps each entry with probability `density`; rᵢ compensates for the dropped ones (`rescale`, see
    `dare.drops`).

    Raises:
        CandidateError: With `normalize`, weights that are not all zero sum to zero.
    """
    assert base is not None
    return add_kept("dare_linear", base, parents, p, drops(base, parents, p))
