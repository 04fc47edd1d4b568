"""della_linear: add task vectors thinned at random, small entries more often (DELLA, Deep et al. 2024)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.della import INEXACT, SPELLED, parameters, prunes
from evosearch.merging.kernels import row_length
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sparse import add_kept, contract_kept
from evosearch.recipe.shapes import MergekitForm


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, with the masks held fixed (`contract_kept`)."""
    assert base is not None
    return contract_kept(base, parents, p, grad, prunes(base, parents, p), row_length(base))


@merge_method(
    "della_linear",
    paper="arXiv:2406.11617",
    summary="Adds a random fraction of each task vector, with large changes more likely to stay.",
    needs_base=True,
    random=True,
    parameters=parameters(normalize=False),
    mergekit=MergekitForm("della_linear", spelled=SPELLED, inexact=INEXACT),
    differentiable=("weight", "lambda"),
    derivative=derivative,
    norms=True,
)
def della_linear(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ Σ wᵢ rᵢ mᵢτᵢ with τᵢ = θᵢ − θ₀; `normalize` divides by Σ wᵢ.

    The mask mᵢ keeps each entry with a probability between `density` − `epsilon` and `density` + `epsilon`, by its rank
    in its row; rᵢ compensates for the dropped ones (`rescale`, see `della.prunes`).

    Raises:
        CandidateError: With `normalize`, weights that are not all zero sum to zero.
    """
    assert base is not None
    return add_kept("della_linear", base, parents, p, prunes(base, parents, p), row_length(base))
