"""regmean_plus: RegMean, with inputs that have passed the merged earlier layers (RegMean++, Nguyen et al. 2025)."""

from collections.abc import Sequence

from torch import Tensor

from evosearch.merging.method_parameters import Parameters
from evosearch.merging.methods.regmean import PARAMETERS, regmean
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import PROPAGATED


@merge_method(
    "regmean_plus",
    paper="arXiv:2508.03121",
    summary="Like regmean, but layer after layer, each for the inputs that the merged earlier layers give it.",
    takes_base=False,
    parameters=PARAMETERS,
    statistic=PROPAGATED,
)
def regmean_plus(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return `regmean` of the parents, with Gram matrices Gᵢ of inputs that have passed the merged earlier layers.

    The sample passes the merged layers 1 … l−1; Gᵢ at a linear layer of layer l is that of its inputs while layer l is
    parent i's. See `moments/layer_walk.py`.

    Raises:
        CandidateError: All weights are zero.
    """
    return regmean(base, parents, p)
