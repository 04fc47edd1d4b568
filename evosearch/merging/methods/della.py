"""della: task vectors thinned by magnitude, merged with the sign election of TIES (Deep et al. 2024)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.della import INEXACT, SPELLED, parameters, prunes
from evosearch.merging.election import SIGN_METHOD
from evosearch.merging.kernels import row_length
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sparse import contract_elected_kept, elect_kept
from evosearch.recipe.shapes import MergekitForm


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, with the masks and the elected signs held fixed (`contract_elected_kept`)."""
    assert base is not None
    return contract_elected_kept(base, parents, p, grad, prunes(base, parents, p), row_length(base))


@merge_method(
    "della",
    paper="arXiv:2406.11617",
    summary="Thins each fine-tune at random, with large changes more likely to stay, then elects a sign per entry.",
    needs_base=True,
    random=True,
    parameters={**parameters(normalize=True), "sign_method": SIGN_METHOD},
    mergekit=MergekitForm("della", fixed={"sign_method": "magnitude"}, spelled=SPELLED, inexact=INEXACT),
    differentiable=("weight", "lambda"),
    derivative=derivative,
    norms=True,
)
def della(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ · the sum of those wᵢ rᵢ mᵢτᵢ that have the elected sign (`sign_method`), entry by entry.

    The mask mᵢ keeps each entry with a probability between `density` − `epsilon` and `density` + `epsilon`, by its rank
    in its row; rᵢ compensates for the dropped ones (`rescale`, see `della.prunes`). `normalize` divides by the sum of
    the weights that agree.
    """
    assert base is not None
    return elect_kept(base, parents, p, prunes(base, parents, p), row_length(base))
