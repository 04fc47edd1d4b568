"""ram: average the entries that several models change, and keep those of one model (Yuan et al. 2026)."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.merging.reinforced import EPSILON, add_changes
from evosearch.recipe.shapes import MergekitForm


@merge_method(
    "ram",
    paper="arXiv:2601.13572",
    summary="Combines models trained by reinforcement learning, whose changes are sparse and hardly overlap.",
    needs_base=True,
    parameters={"epsilon": EPSILON},
    mergekit=MergekitForm("ram"),
    norms=True,
)
def ram(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + Σ mᵢτᵢ / max(1, Σ mᵢ), entry by entry, with τᵢ = θᵢ − θ₀.

    mᵢ is 1 where |τᵢ| > `epsilon`. So an entry that one model changes is taken over, and one that several change is the
    mean of their changes.
    """
    assert base is not None
    return add_changes(base, parents, p["epsilon"], [1.0] * len(parents), p)
