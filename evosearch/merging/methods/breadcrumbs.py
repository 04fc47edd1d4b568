"""breadcrumbs: add task vectors without their outliers and small entries (Davari and Belilovsky 2023)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evosearch.merging.breadcrumbs import PARAMETERS, SPELLED, bands
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sparse import add_kept, contract_kept
from evosearch.recipe.shapes import MergekitForm


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ and dL/dλ, with the kept entries held fixed (`contract_kept`)."""
    assert base is not None
    return contract_kept(base, parents, p, grad, bands(base, parents, p))


@merge_method(
    "breadcrumbs",
    paper="arXiv:2312.06795",
    summary="Adds many fine-tunes without their largest changes, which disturb others, and without the smallest ones.",
    needs_base=True,
    parameters=PARAMETERS,
    mergekit=MergekitForm("breadcrumbs", spelled=SPELLED),
    differentiable=("weight", "lambda"),
    derivative=derivative,
    norms=True,
)
def breadcrumbs(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + λ Σ wᵢ rᵢ mᵢτᵢ with τᵢ = θᵢ − θ₀; `normalize` divides by Σ wᵢ.

    The mask mᵢ drops the top `gamma` of the entries by magnitude and keeps the next `density` (`breadcrumbs.bands`). rᵢ
    is 1, or with `rescale: l1` the factor that restores the L1 norm of τᵢ.

    Raises:
        CandidateError: With `normalize`, weights that are not all zero sum to zero.
    """
    assert base is not None
    return add_kept("breadcrumbs", base, parents, p, bands(base, parents, p))
