"""MagPrune (DELLA, Deep et al. 2024): drop entries of a task vector at random, large ones less often."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evosearch.merging import philox
from evosearch.merging.compiled import fused, library
from evosearch.merging.dare import upper_bytes
from evosearch.merging.kernels import chunks, row_length, same
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.sparse import l1_factors
from evosearch.recipe.shapes import Param, Scalar

# mergekit's `rescale: true` is our `l1`; it cannot rescale by the probabilities.
SPELLED: dict[str, dict[Scalar, Scalar]] = {"rescale": {"l1": True}}
INEXACT: dict[str, tuple[Scalar, str]] = {
    "rescale": (
        True,
        "kept entries are divided by their probability in evosearch, and rescaled to the L1 norm in mergekit",
    )
}


def parameters(normalize: bool) -> dict[str, Param]:
    """Return the parameters that both methods have; the default of `normalize` differs, as in mergekit."""
    return {
        "weight": Param(0.0, 1.5, per_model=True),
        "density": Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True),
        "epsilon": Param(0.0, 0.5, default=0.15, per_model=True, strict=True),
        "normalize": Param(default=normalize, kind="bool"),
        "rescale": Param(default=True, kind="choice", choices=(True, "l1", False)),
        "lambda": Param(0.0, 2.0, default=1.0),
    }


@dataclass(frozen=True)
class Prune:
    """The random mask of one task vector, whose rows have `length` entries.

    Attributes:
        key: Key of the random stream.
        length: Length of a row.
        limits: (length,) int64, the limit of an entry's lane by its position among the largest of its row.
        divisors: (length,) the divisors of kept entries by position, or None.
        places: (n,) the position of every entry; None: found chunk by chunk.
        known: (n,) uint8, the upper byte of every entry's lane (`dare.upper_bytes`), or None.
        factor: Factor of all kept entries.
    """

    key: philox.Key
    length: int
    limits: Tensor
    divisors: Tensor | None = None
    places: Tensor | None = None
    known: Tensor | None = None
    factor: float = 1.0

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Mask, in place, a chunk of complete rows that begins at index `start`. NaN stays NaN."""
        count = tau.numel()
        places = _places(tau, self.length) if self.places is None else self.places[start : start + count].long()
        kept = philox.lanes(self.key, start, count, tau.device) < self.limits[places]
        tau.mul_(kept)
        return tau if self.divisors is None else tau.div_(self.divisors[places])

    def compiled(self) -> library.Change | None:
        """Return the description for the compiled kernels; None if the places are not known."""
        if self.places is None:
            return None
        return library.Change(
            flags=fused.PRUNE | (fused.WIDE if self.places.dtype == torch.int32 else 0),
            key0=self.key[0],
            key1=self.key[1],
            limits=self.limits.data_ptr(),
            divisors=None if self.divisors is None else self.divisors.data_ptr(),
            places=self.places.data_ptr(),
            known=None if self.known is None else self.known.data_ptr(),
        )


@dataclass(frozen=True)
class Unpruned:
    """A task vector of which every entry is kept."""

    factor: float = 1.0

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Return the chunk."""
        return tau

    def compiled(self) -> library.Change:
        """Return the description for the compiled kernels."""
        return library.Change()


def prunes(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[Prune | Unpruned]:
    """Return one mask per parent; it depends only on the seed, the parent's content and the tensor's name.

    An entry is kept with a probability that grows linearly with its rank by magnitude among the m entries of its row
    (its vector along the last dimension), from density − ε for the smallest to density + ε for the largest; of equal
    entries, the first one ranks as the largest. `epsilon` is limited to min(density, 1 − density), so that these are
    probabilities with the mean `density`. `rescale: true` divides kept entries by their probability (Deep et al. 2024),
    `l1` multiplies all by ‖τ‖₁ / ‖kept τ‖₁ as mergekit does, and `false` leaves them.
    """
    assert len(p.parents) == len(parents)
    assert all(origin.content_sha256 for origin in p.parents), "masks are keyed by the parents' contents"
    pruned: dict[int, Prune] = {}
    for i, (theta, density, epsilon) in enumerate(zip(parents, p.each("density"), p.each("epsilon"), strict=True)):
        if density < 1 and not same(base, theta):
            pruned[i] = _prune(base, theta, p, i, density, min(epsilon, density, 1 - density))
    if p.choice("rescale") == "l1":
        for i, factor in l1_factors(base, parents, p, pruned, row_length(base)).items():
            pruned[i] = replace(pruned[i], factor=factor)
    return [pruned.get(i, Unpruned()) for i in range(len(parents))]


def _prune(base: Tensor, theta: Tensor, p: Parameters, i: int, density: float, epsilon: float) -> Prune:
    length = row_length(base)
    steps = [1 - 2 * place / (length - 1) if length > 1 else 0.0 for place in range(length)]  # 1 … −1
    probabilities = [density + epsilon * step for step in steps]
    limits = torch.tensor([philox.limit_of(one) for one in probabilities], device=base.device)
    divisors = None
    if p.choice("rescale") == "True":
        divisors = torch.tensor([one or 1.0 for one in probabilities], dtype=torch.float64)  # at 0, none is kept
        divisors = divisors.to(base.device, p.dtype)
    origin = p.parents[i]
    key = philox.key_of(p.seed, origin.content_sha256, origin.tensor)
    places = _every_place(base, theta, p, i)
    return Prune(key, length, limits, divisors, places, upper_bytes(base, theta, p, i, key))


def _every_place(base: Tensor, theta: Tensor, p: Parameters, i: int) -> Tensor | None:
    """Return the places of all entries (n,): remembered between candidates if the memory has room for them.

    None if it has none, and no compiled kernel can find them at once.
    """
    length = row_length(base)
    dtype = torch.int16 if length <= 1 << 15 else torch.int32

    def find() -> Tensor:
        if fused.applies(p.dtype, (base, theta)):
            return fused.places(base, theta, length, dtype)
        parts = [_places(ends[1] - ends[0], length).to(dtype) for _, ends in chunks((base, theta), p.dtype, length)]
        return torch.cat(parts)

    fits = p.recall_of(i, "room for places", lambda: p.reserve(i, base.numel() * dtype.itemsize))
    if fits:
        return p.recall_of(i, "places", find)
    return find() if fused.applies(p.dtype, (base, theta)) else None


def _places(tau: Tensor, length: int) -> Tensor:
    """Return each entry's position among the largest of its row: (rows · length,) int64, 0 for the largest."""
    order = tau.view(-1, length).abs().argsort(dim=1, descending=True, stable=True)
    positions = torch.arange(length, device=tau.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions).view(-1)
