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


def l1_factors(
    base: Tensor, parents: Sequence[Tensor], p: Parameters, kept: Mapping[int, Kept], row: int = 1
) -> dict[int, float]:
    """Return ‖τᵢ‖₁ / ‖kept τᵢ‖₁ of some parents, or 1 where either norm is below `NO_NORM`.

    The norms of complete task vectors are remembered.
    """
    if not kept:
        return {}
    stay = _l1_norms(base, [parents[i] for i in kept], p, list(kept.values()), row)

    def norm(i: int) -> float:
        return p.recall_of(i, "L1 norm", lambda: _l1_norms(base, [parents[i]], p, None)[0])

    return {i: _ratio(norm(i), stays) for i, stays in zip(kept, stay, strict=True)}


def _l1_norms(
    base: Tensor, parents: Sequence[Tensor], p: Parameters, kept: Sequence[Kept] | None, row: int = 1
) -> list[float]:
    """Return ‖τᵢ‖₁, of the kept entries if these are given."""
    if fused.applies(p.dtype, (base, *parents)) and (found := fused.absolute_sums(base, parents, kept)) is not None:
        return found

    def norm(i: int) -> float:
        def sizes(start: int, ends: list[Tensor]) -> Tensor:
            tau = ends[1] - ends[0]
            return (tau if kept is None else kept[i].apply(tau, start)).abs_()

        return total(sizes, (base, parents[i]), p.dtype, row)

    return [norm(i) for i in range(len(parents))]


def _ratio(norm: float, stays: float) -> float:
    return norm / stays if norm >= NO_NORM and stays >= NO_NORM else 1.0
