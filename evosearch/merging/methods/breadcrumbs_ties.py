"""breadcrumbs_ties: breadcrumbs, merged with the sign election of TIES (Davari and Belilovsky 2023)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.breadcrumbs import PARAMETERS, SPELLED, bands
from evosearch.merging.election import SIGN_METHOD
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sparse import contract_elected_kept, elect_kept
from evosearch.recipe.shapes import MergekitForm


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, with the kept entries and the elected signs held fixed (`contract_elected_kept`)."""
    assert base is not None
    return contract_elected_kept(base, parents, p, grad, bands(base, parents, p))


@merge_method(
    "breadcrumbs_ties",
    paper="arXiv:2312.06795",
    summary="Drops the largest and smallest changes of each fine-tune, then elects a sign per entry.",
    needs_base=True,
    parameters={**PARAMETERS, "sign_method": SIGN_METHOD},
    mergekit=MergekitForm("breadcrumbs_ties", fixed={"sign_method": "magnitude"}, spelled=SPELLED),
    differentiable=("weight", "lambda"),
    derivative=derivative,
    norms=True,
)
def breadcrumbs_ties(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ · the sum of those wᵢ rᵢ mᵢτᵢ that have the elected sign (`sign_method`), entry by entry.

    The mask mᵢ drops the top `gamma` of the entries by magnitude and keeps the next `density` (`breadcrumbs.bands`). rᵢ
    is 1, or with `rescale: l1` the factor that restores the L1 norm of τᵢ. `normalize` divides by the sum of the
    weights that agree.
    """
    assert base is not None
    return elect_kept(base, parents, p, bands(base, parents, p))
