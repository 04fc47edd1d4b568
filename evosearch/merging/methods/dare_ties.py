"""dare_ties: randomly thinned task vectors, merged with the sign election of TIES (Yu et al. 2024)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.dare import INEXACT, PARAMETERS, SPELLED, trimmed
from evosearch.merging.election import SIGN_METHOD
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sparse import contract_elected_kept, elect_kept
from evosearch.recipe.shapes import MergekitForm, Param


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, with the masks and the elected signs held fixed (`contract_elected_kept`)."""
    assert base is not None
    return contract_elected_kept(base, parents, p, grad, trimmed(base, parents, p))


@merge_method(
    "dare_ties",
    paper="arXiv:2311.03099",
    summary="Combines many fine-tunes with conflicting changes: thins each at random, then elects a sign per entry.",
    needs_base=True,
    random=True,
    parameters={
        **PARAMETERS,
        "trim": Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True),
        "sign_method": SIGN_METHOD,
    },
    mergekit=MergekitForm(
        "dare_ties", fixed={"sign_method": "magnitude", "trim": 1.0}, spelled=SPELLED, inexact=INEXACT
    ),
    differentiable=("weight", "lambda"),
    derivative=derivative,
    norms=True,
)
def dare_ties(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ · the sum of those wᵢ rᵢ mᵢτᵢ that have the elected sign (`sign_method`), entry by entry.

    The mask mᵢ keeps each entry with probability `density`; rᵢ compensates for the dropped ones (`rescale`, see
    `dare.drops`). With `trim` below 1, mᵢ keeps only this share of them, the largest by magnitude (`dare.trimmed`):
    DARE followed by TIES. `normalize` divides by the sum of the weights that agree.
    """
    assert base is not None
    return elect_kept(base, parents, p, trimmed(base, parents, p))
