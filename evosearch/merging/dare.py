"""Drop and rescale (DARE, Yu et al. 2024): most entries of a task vector left out at random, the others made larger."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evosearch.merging import philox
from evosearch.merging.kernels import same, total
from evosearch.merging.parameters import Parameters
from evosearch.recipe.shapes import Param

PARAMETERS = {
    "weight": Param(0.0, 1.5, per_model=True),
    "density": Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True),
    "normalize": Param(default=False, kind="bool"),
    "rescale": Param(default=True, kind="choice", choices=(True, "l1", False)),
    "lambda": Param(0.0, 2.0, default=1.0),
}
NO_NORM = 1e-7  # a shorter vector is not rescaled to its norm: mergekit's limit


@dataclass(frozen=True)
class Drop:
    """What is left out of one task vector.

    Attributes:
        key: of the random stream.
        density: the probability with which an entry stays.
        factor: what makes up for those left out.
    """

    key: philox.Key
    density: float
    factor: float = 1.0

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """A chunk that begins at index `start`, not rescaled; it is written over. NaN stays NaN."""
        if self.density >= 1:
            return tau
        return tau.mul_(philox.kept(self.key, self.density, start, tau.numel(), tau.device))


def drops(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[Drop]:
    """One a parent. The masks depend on the seed, the parent's content and the tensor's name, and on nothing else.

    `rescale: true` makes up by 1/density (eq. 3), `l1` by ‖τ‖₁ / ‖kept τ‖₁ as mergekit does, false not at all.
    """
    assert len(p.parents) == len(parents)
    assert all(origin.content_sha256 for origin in p.parents), "masks are keyed by contents"
    made = []
    for origin, theta, density in zip(p.parents, parents, p.each("density"), strict=True):
        drop = Drop(philox.key_of(p.seed, origin.content_sha256, origin.tensor), density)
        factor = 1.0
        if density < 1 and not same(base, theta):
            factor = {"True": 1 / density, "False": 1.0}.get(p.choice("rescale")) or _norms(base, theta, drop, p.dtype)
        made.append(Drop(drop.key, density, factor))
    return made


def _norms(base: Tensor, theta: Tensor, drop: Drop, dtype: torch.dtype) -> float:
    """‖τ‖₁ / ‖kept τ‖₁, or 1 where either is next to nothing."""
    whole = total(lambda _, ends: (ends[1] - ends[0]).abs_(), (base, theta), dtype)
    kept = total(lambda start, ends: drop.apply(ends[1] - ends[0], start).abs_(), (base, theta), dtype)
    return whole / kept if whole >= NO_NORM and kept >= NO_NORM else 1.0
