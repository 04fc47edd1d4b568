"""Merges of task vectors of which only some entries are kept: their sum, plain or after a sign election.

Shared by methods that differ only in the entries that they keep: dare, breadcrumbs and della.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from evosearch.merging.compiled import fused
from evosearch.merging.election import contract_elected, elect_deltas
from evosearch.merging.kernels import total
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.sums import add_deltas, chain, contract_deltas, scales

Slopes = Mapping[str, float | tuple[float, ...]]
NO_NORM = 1e-7  # mergekit's limit: vectors with a smaller L1 norm are not rescaled


class Kept(Protocol):
    """The kept entries of one task vector."""

    @property
    def factor(self) -> float:
        """Return the factor of all kept entries, which compensates for the dropped ones."""
        ...

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Zero the dropped entries of a chunk that begins at index `start`, in place or as a new tensor.

        NaN stays NaN, also where it is dropped, so that damaged parents are detected.
        """
        ...


def add_kept(
    method: str, base: Tensor, parents: Sequence[Tensor], p: Parameters, kept: Sequence[Kept], row: int = 1
) -> Tensor:
    """Return θ₀ + λ Σ wᵢ rᵢ mᵢτᵢ, where mᵢ marks the kept entries and rᵢ is their factor.

    Args:
        method: Name of the method, for errors.
        base: θ₀.
        parents: θᵢ.
        p: Parameters; `weight`, `lambda` and `normalize` are used.
        kept: The kept entries of each τᵢ.
        row: Length of the rows that `apply` receives completely.

    Raises:
        CandidateError: With `normalize`, weights that are not all zero sum to zero.
    """
    factors = [scale * one.factor for scale, one in zip(scales(method, p), kept, strict=True)]  # λwᵢrᵢ
    return add_deltas(base, parents, factors, p, kept, row)


def contract_kept(
    base: Tensor, parents: Sequence[Tensor], p: Parameters, grad: Tensor, kept: Sequence[Kept], row: int = 1
) -> Slopes:
    """Return dL/dwᵢ and dL/dλ of `add_kept`, with the kept entries held fixed, from rᵢ ⟨dL/dθ, mᵢτᵢ⟩."""
    slopes = contract_deltas(base, parents, p, grad, kept, row)
    return chain(p, [one.factor * slope for one, slope in zip(kept, slopes, strict=True)])


def elect_kept(base: Tensor, parents: Sequence[Tensor], p: Parameters, kept: Sequence[Kept], row: int = 1) -> Tensor:
    """Return θ₀ + λ · the sum of those wᵢ rᵢ mᵢτᵢ that agree with the elected sign, entry by entry."""
    factors = [w * one.factor for w, one in zip(p.each("weight"), kept, strict=True)]  # wᵢrᵢ
    return elect_deltas(base, parents, p, kept, factors, row=row)


def contract_elected_kept(
    base: Tensor, parents: Sequence[Tensor], p: Parameters, grad: Tensor, kept: Sequence[Kept], row: int = 1
) -> Slopes:
    """Return dL/dwᵢ and dL/dλ of `elect_kept`, with the kept entries and the elected signs held fixed."""
    rescale = [one.factor for one in kept]  # rᵢ
    return contract_elected(base, parents, p, grad, kept, rescale, row=row)


def l1_factor(base: Tensor, theta: Tensor, p: Parameters, i: int, kept: Kept, row: int = 1) -> float:
    """Return ‖τᵢ‖₁ / ‖kept τᵢ‖₁, or 1 if either norm is below `NO_NORM`; the first norm is remembered."""

    def norm() -> float:
        found = fused.absolute_sum(base, theta, None) if fused.applies(p.dtype, (base, theta)) else None
        return total(lambda _, ends: (ends[1] - ends[0]).abs_(), (base, theta), p.dtype) if found is None else found

    stays = fused.absolute_sum(base, theta, kept) if fused.applies(p.dtype, (base, theta)) else None
    if stays is None:
        stays = total(lambda start, ends: kept.apply(ends[1] - ends[0], start).abs_(), (base, theta), p.dtype, row)
    return _ratio(p.recall_of(i, "L1 norm", norm), stays)


def _ratio(norm: float, stays: float) -> float:
    return norm / stays if norm >= NO_NORM and stays >= NO_NORM else 1.0
