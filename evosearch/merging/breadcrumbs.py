"""Model breadcrumbs (Davari and Belilovsky 2023): drop the largest and the smallest entries of a task vector."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from evosearch.merging.compiled import fused, library
from evosearch.merging.kernels import same
from evosearch.merging.magnitudes import Delta, Trim, largest
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.sparse import l1_factors
from evosearch.recipe.shapes import Param, Scalar

PARAMETERS = {
    "weight": Param(0.0, 1.5, per_model=True),
    "density": Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True),
    "gamma": Param(0.0, 1.0, default=0.01, per_model=True, strict=True),
    "normalize": Param(default=False, kind="bool"),
    "rescale": Param(default=False, kind="choice", choices=(False, "l1")),
    "lambda": Param(0.0, 2.0, default=1.0),
}
SPELLED: dict[str, dict[Scalar, Scalar]] = {"rescale": {"l1": True}}


@dataclass(frozen=True)
class Band:
    """The entries of a task vector between two magnitudes.

    Attributes:
        outer: Keeps the band and the outliers above it; None: all entries.
        outliers: How many entries above the band are dropped.
        inner: Keeps the outliers alone; None with outliers: all nonzero entries are outliers.
        factor: Factor that compensates for the dropped entries.
    """

    outer: Trim | None = None
    outliers: int = 0
    inner: Trim | None = None
    factor: float = 1.0

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Zero the dropped entries of a chunk that begins at index `start`. NaN and infinity become NaN."""
        kept = self.outer.apply(tau, start) if self.outer else tau
        if not self.outliers:
            return kept
        return kept - (self.inner.apply(tau, start) if self.inner else tau)

    def compiled(self) -> library.Change:
        """Return the description for the compiled kernels."""
        made = self.outer.compiled() if self.outer else library.Change()
        if self.outliers:
            made.flags |= fused.OUTLIERS
            if self.inner:
                made.flags |= fused.INNER
                made.inner = self.inner.compiled().outer
        return made


def bands(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[Band]:
    """Return the kept entries of every task vector.

    Of n entries, sorted by magnitude (equal ones by index, the lowest first), the first ⌊gamma·n⌋ are dropped, the next
    max(1, ⌊density·n⌋) kept, and the rest dropped. Where these are more than n, fewer of the first are dropped.
    `rescale: l1` restores the L1 norm of the task vector, as mergekit does.
    """
    moved = [i for i, theta in enumerate(parents) if not same(base, theta)]
    densities, gammas, made = p.each("density"), p.each("gamma"), [Band()] * len(parents)
    for i in moved:
        made[i] = _band(_delta(base, parents[i], p, i), densities[i], gammas[i])
    if p.choice("rescale") == "l1":
        for i, factor in l1_factors(base, parents, p, {i: made[i] for i in moved}).items():
            made[i] = replace(made[i], factor=factor)
    return made


def _delta(base: Tensor, theta: Tensor, p: Parameters, i: int) -> Delta:
    return Delta(lambda: base, lambda: theta, p, i)


def _band(delta: Delta, density: float, gamma: float) -> Band:
    n = delta.base().numel()
    stay = max(1, int(density * n))
    outliers = min(int(gamma * n), n - stay)
    (outer,) = largest([delta], [n], outliers + stay)
    (inner,) = largest([delta], [n], outliers) if outliers else (None,)
    return Band(outer, outliers, inner)
