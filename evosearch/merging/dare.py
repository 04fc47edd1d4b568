"""Drop and rescale (DARE, Yu et al. 2024): drop entries of a task vector at random and scale up the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evosearch.merging import philox
from evosearch.merging.compiled import fused, library
from evosearch.merging.kernels import elementwise, same
from evosearch.merging.magnitudes import Delta, Trim, largest
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.sparse import l1_factors
from evosearch.recipe.shapes import Param, Scalar

PARAMETERS = {
    "weight": Param(0.0, 1.5, per_model=True),
    "density": Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True),
    "normalize": Param(default=False, kind="bool"),
    "rescale": Param(default=True, kind="choice", choices=(True, "l1", False)),
    "lambda": Param(0.0, 2.0, default=1.0),
}
# mergekit's `rescale: true` is our `l1`; it cannot rescale by the density.
SPELLED: dict[str, dict[Scalar, Scalar]] = {"rescale": {"l1": True}}
INEXACT: dict[str, tuple[Scalar, str]] = {
    "rescale": (True, "kept entries are multiplied by 1/density in evosearch, and rescaled to the L1 norm in mergekit")
}


@dataclass(frozen=True)
class Drop:
    """The random mask of one task vector.

    Attributes:
        key: Key of the random stream.
        density: Probability of keeping an entry.
        factor: Factor that compensates for the dropped entries.
        known: (n,) uint8, the upper byte of every entry's lane, for the compiled kernels; None: all are drawn again.
    """

    key: philox.Key
    density: float
    factor: float = 1.0
    known: Tensor | None = None

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Mask, without rescaling, a chunk that begins at index `start`. Works in place; NaN stays NaN."""
        if self.density >= 1:
            return tau
        return tau.mul_(philox.kept(self.key, self.density, start, tau.numel(), tau.device))

    def compiled(self) -> library.Change:
        """Return the description for the compiled kernels."""
        limit = philox.limit_of(self.density)
        if limit > philox.LOW:
            return library.Change()
        known = None if self.known is None else self.known.data_ptr()
        return library.Change(flags=fused.DROP, key0=self.key[0], key1=self.key[1], limit=limit, known=known)


@dataclass(frozen=True)
class Trimmed:
    """A random mask, followed by a trim of what it keeps. The factor compensates for the mask only."""

    drop: Drop
    trim: Trim

    @property
    def factor(self) -> float:
        """Return the mask's factor."""
        return self.drop.factor

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Mask and trim a chunk that begins at index `start`. NaN stays NaN."""
        return self.trim.apply(self.drop.apply(tau, start), start)

    def compiled(self) -> library.Change:
        """Return the description for the compiled kernels, which trim what a mask keeps."""
        made = self.drop.compiled()
        made.flags |= fused.OUTER
        made.outer = self.trim.compiled().outer
        return made


def trimmed(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[Drop | Trimmed]:
    """Return the masks of `drops`, each with the trim that keeps its `trim` share.

    Of m entries that a mask keeps and that are not zero, the max(1, ⌊trim·m⌋) largest by magnitude stay; of equal ones,
    those with the lowest index.
    """
    found: list[Drop | Trimmed] = []
    for drop, theta, share in zip(drops(base, parents, p), parents, p.each("trim"), strict=True):
        trim = None if share >= 1 or same(base, theta) else _trim(base, theta, drop, share, p.dtype)
        found.append(drop if trim is None else Trimmed(drop, trim))
    return found


def _trim(base: Tensor, theta: Tensor, drop: Drop, share: float, dtype: torch.dtype) -> Trim | None:
    thinned = elementwise(lambda start, ends: drop.apply(ends[1] - ends[0], start), (base, theta), dtype).view(-1)
    kept = int(thinned.count_nonzero())
    if not kept:
        return None
    zero = thinned.new_zeros(1).expand(len(thinned))
    delta = Delta(lambda: zero, lambda: thinned, Parameters({}, {}, dtype), 0)
    (found,) = largest([delta], [len(thinned)], max(1, int(share * kept)))
    return found


def drops(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[Drop]:
    """Return one mask per parent.

    A mask depends only on the seed, the parent's content and the tensor's name. `rescale: true` multiplies the kept
    entries by 1/density (Yu et al. 2024, eq. 3), `l1` by ‖τ‖₁ / ‖kept τ‖₁ as mergekit does, and `false` by 1.
    """
    assert len(p.parents) == len(parents)
    assert all(origin.content_sha256 for origin in p.parents), "masks are keyed by the parents' contents"
    rescale, made = p.choice("rescale"), []
    for i, (theta, density) in enumerate(zip(parents, p.each("density"), strict=True)):
        origin = p.parents[i]
        drop = Drop(philox.key_of(p.seed, origin.content_sha256, origin.tensor), density)
        if density < 1 and not same(base, theta):
            factor = 1 / density if rescale == "True" else 1.0
            drop = replace(drop, factor=factor, known=upper_bytes(base, theta, p, i, drop.key))
        made.append(drop)
    if rescale == "l1":
        dropped = {i: drop for i, drop in enumerate(made) if drop.density < 1 and not same(base, parents[i])}
        for i, factor in l1_factors(base, parents, p, dropped).items():
            made[i] = replace(made[i], factor=factor)
    return made


def upper_bytes(base: Tensor, theta: Tensor, p: Parameters, i: int, key: philox.Key) -> Tensor | None:
    """Return the upper bytes of the lanes, remembered between candidates of one seed if the memory has room for them.

    With them, a density decides all but one entry in 256 without drawing again.
    """
    if not fused.applies(p.dtype, (base, theta)):
        return None
    fits = p.recall_of(i, f"room for lanes of seed {p.seed}", lambda: p.reserve(i, base.numel()))
    return p.recall_of(i, f"lanes of seed {p.seed}", lambda: fused.upper_bytes(key, base.numel())) if fits else None
