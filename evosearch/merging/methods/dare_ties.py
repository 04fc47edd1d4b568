"""dare_ties: randomly thinned task vectors, merged with the sign election of TIES (Yu et al. 2024)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.dare import INEXACT, PARAMETERS, SPELLED, drops
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sparse import contract_elected_kept, elect_kept
from evosearch.recipe.shapes import MergekitForm


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, with the masks and the elected signs held fixed (`contract_elected`)."""
    assert base is not None
    return contract_elected_kept(base, parents, p, grad, drops(base, parents, p))


@merge_method(
    "dare_ties",
    paper="arXiv:2311.03099",
    summary="Combines many fine-tunes with conflicting changes: thins each at random, then elects a sign per entry.",
    needs_base=True,
    random=True,
    parameters=PARAMETERS,
    mergekit=MergekitForm("dare_ties", spelled=SPELLED, inexact=INEXACT),
    differentiable=("weight", "lambda"),
    derivative=derivative,
)
def dare_ties(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ · the sum of those wᵢ rᵢ mᵢτᵢ that agree with the sign of their sum, entry by entry.

    The mask mᵢ keeps each entry with probability `density`; rᵢ compensates for the dropped ones (`rescale`, see
    `dare.drops`). No entry is trimmed by magnitude. `normalize` divides by the sum of the weights that agree.
    """
    assert base is not None
    return elect_kept(base, parents, p, drops(base, parents, p))
