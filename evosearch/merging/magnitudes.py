"""Exact top-k selection by magnitude, streamed over one tensor or over all tensors of a model.

The bits of non-negative floats, read as integers, sort like the floats. The k-th largest |τ| is therefore found in two
steps: a histogram of the upper 16 bits (exponent and seven bits of the mantissa), then the entries of the one bin that
contains it. The histogram does not depend on the density. With a `Memory` it is kept between candidates, along with one
byte per entry for its approximate magnitude, so that a later search reads about one entry in 200.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import hardshrink

from evosearch.merging.compiled import fused, library
from evosearch.merging.kernels import chunks, positions, same
from evosearch.merging.method_parameters import Parameters

BINS = 1 << 15  # values of the upper 16 bits of a non-negative float32
LOW = 1 << 16  # values of the lower 16 bits


@dataclass(frozen=True)
class Trim:
    """Threshold on a task vector: keep |τ| > `below` before index `end`, and |τ| > `cut` from there on.

    `below` is the next smaller float to `cut`, so entries equal to `cut` are kept before `end` only.
    """

    cut: float
    below: float
    end: int

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Zero the trimmed entries of a chunk that begins at index `start`. NaN stays and shows in the result."""
        before = min(max(self.end - start, 0), tau.numel())  # entries of this chunk before `end`
        if before == tau.numel():
            return _above(tau, self.below)
        if before == 0:
            return _above(tau, self.cut)
        return torch.cat((_above(tau[:before], self.below), _above(tau[before:], self.cut)))

    def compiled(self) -> library.Change:
        """Return the description for the compiled kernels."""
        return library.Change(flags=fused.OUTER, outer=library.Trim(self.below, self.cut, self.end))


@dataclass(frozen=True)
class Histogram:
    """Counts of the nonzero entries of |τ| by the upper 16 bits of their float32 representation.

    Attributes:
        bins: (m,) int64, the values that occur, ascending.
        counts: (m,) int64, entries per bin.
        from_above: (m,) int64, entries in the top 1, 2, 3... of these bins.
        groups: (BINS,) uint8, the group of each bin: at most 256 groups of consecutive bins; None without a memory.
        codes: (n,) uint8, the group of each entry; None without a memory.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    from_above: NDArray[np.int64]
    groups: Tensor | None = None
    codes: Tensor | None = None

    @property
    def total(self) -> int:
        """Return the number of nonzero entries."""
        return int(self.from_above[-1]) if len(self.from_above) else 0

    def bin_of(self, k: int) -> tuple[int, int]:
        """Return the bin of the k-th largest entry, and how many of its entries are among the k largest."""
        index = int(np.searchsorted(self.from_above, k))
        place = len(self.from_above) - 1 - index
        return int(self.bins[place]), k - int(self.from_above[index] - self.counts[place])


@dataclass(frozen=True)
class Delta:
    """A task vector τ = θ − θ₀, computed on demand.

    Attributes:
        base: Loads θ₀; called on every pass.
        theta: Loads θ; called on every pass.
        p: Parameters at this tensor: the type τ is computed in, and the memory.
        parent: Index of the task vector's model in `p.parents`.
    """

    base: Callable[[], Tensor]
    theta: Callable[[], Tensor]
    p: Parameters
    parent: int

    def histogram(self) -> Histogram:
        """Count the entries by magnitude; remembered between candidates."""
        return self.p.recall_of(self.parent, "magnitudes", self._count)

    def members(self, bin: int, histogram: Histogram) -> tuple[Tensor, Tensor]:
        """Return the indices (int64) and the lower 16 bits (int32) of the entries of one bin, in order of index."""
        none = torch.empty(0, dtype=torch.int64)
        if not (histogram.bins == bin).any():
            return none, none.int()
        base, theta = self.base(), self.theta()
        if histogram.codes is not None and histogram.groups is not None:
            group = int(histogram.groups[bin])
            place = positions(histogram.codes, lambda codes: codes == group)
            ends = (end.reshape(-1)[place].to(self.p.dtype) for end in (base, theta))
            found, low = _in_bin(_bits(*ends), bin)
            return place[found].cpu(), low.cpu()
        places, lows = [], []
        for start, ends_here in chunks((base, theta), self.p.dtype):
            place, low = _in_bin(_bits(*ends_here), bin)
            places.append(place + start)
            lows.append(low)
        return torch.cat(places).cpu(), torch.cat(lows).cpu()

    def _count(self) -> Histogram:
        base, theta = self.base(), self.theta()
        if fused.applies(self.p.dtype, (base, theta)):
            return compiled_histogram(base, [theta], lambda: self.p.reserve(self.parent, base.numel()))
        counts = torch.zeros(BINS, dtype=torch.int64, device=base.device)
        if not same(base, theta):
            for _, ends in chunks((base, theta), self.p.dtype):
                bits = _bits(*ends)
                counts += torch.bincount(bits >> 16, minlength=BINS)
                counts[0] -= bits.numel() - bits.count_nonzero()
        counts = counts.cpu()
        if not counts.any() or not self.p.reserve(self.parent, base.numel()):
            return _histogram(counts)
        groups = _groups(counts)
        there = groups.to(base.device)
        codes = torch.cat([there[_bits(*ends) >> 16] for _, ends in chunks((base, theta), self.p.dtype)])
        return _histogram(counts, groups, codes)


def trims(deltas: Sequence[Delta], sizes: Sequence[int], density: float) -> list[Trim | None]:
    """Return the trims that keep the top max(1, ⌊density·n⌋) entries of the concatenated task vectors.

    Of entries of equal magnitude the ones with the lowest index are kept, in the order of `deltas`. NaN counts as the
    largest.

    Args:
        deltas: Task vectors, at least one, all of one dtype.
        sizes: Number of entries of each task vector.
        density: Fraction of the n entries to keep.

    Returns:
        One trim per task vector; None if nothing is trimmed or all trimmed entries are zero.
    """
    return largest(deltas, sizes, max(1, int(density * sum(sizes))))


def largest(deltas: Sequence[Delta], sizes: Sequence[int], k: int) -> list[Trim | None]:
    """Return the trims that keep the top k entries, k at least 1, as `trims` does."""
    if k >= sum(sizes):
        return [None] * len(deltas)
    histograms = [delta.histogram() for delta in deltas]
    if k >= sum(histogram.total for histogram in histograms):
        return [None] * len(deltas)
    if len(deltas) == 1 and fused.applies(deltas[0].p.dtype, ends := (deltas[0].base(), deltas[0].theta())):
        return [compiled_trim(ends[0], ends[1:], histograms[0], k)]
    bin, rank = _bin_of(histograms, k)
    found = [delta.members(bin, histogram) for delta, histogram in zip(deltas, histograms, strict=True)]
    lows = torch.cat([low for _, low in found])
    low = int(lows.kthvalue(lows.numel() - rank + 1).values)
    equal_kept = rank - int((lows > low).count_nonzero())
    cut = torch.tensor(bin << 16 | low, dtype=torch.int32).view(torch.float32)
    dtype = torch.float32 if deltas[0].p.dtype == torch.float64 else deltas[0].p.dtype
    below = torch.nextafter(cut.to(dtype), torch.zeros((), dtype=dtype)).item()
    made: list[Trim | None] = []
    for (places, own), size in zip(found, sizes, strict=True):
        equal = places[own == low]
        here = min(equal_kept, equal.numel())
        equal_kept -= here
        end = size if here == equal.numel() else int(equal[here - 1]) + 1 if here else 0
        made.append(Trim(cut.item(), below, end))
    return made


def compiled_histogram(base: Tensor, models: Sequence[Tensor], reserve: Callable[[], bool]) -> Histogram:
    """Count the entries by magnitude in a compiled kernel: of τ, or of the variance of several models.

    Args:
        base: θ₀.
        models: θᵢ.
        reserve: Reserves memory for one byte per entry; returns whether there is room.
    """
    counts = fused.histogram(base, models)
    if not counts.any() or not reserve():
        return _histogram(counts)
    groups = _groups(counts)
    return _histogram(counts, groups, fused.codes(base, models, groups))


def compiled_trim(base: Tensor, models: Sequence[Tensor], histogram: Histogram, k: int) -> Trim | None:
    """Return the trim that keeps the top k entries, found by a compiled kernel; None if all others are zero."""
    if k >= histogram.total:
        return None
    bin, rank = histogram.bin_of(k)
    group = 0 if histogram.groups is None else int(histogram.groups[bin])
    low, end = fused.threshold(base, models, histogram.codes, group, bin, rank)
    cut = np.array(bin << 16 | low, dtype=np.int32).view(np.float32)
    return Trim(float(cut), float(np.nextafter(cut, np.float32(0))), end)


def _histogram(counts: Tensor, groups: Tensor | None = None, codes: Tensor | None = None) -> Histogram:
    every = counts.numpy()
    bins = every.nonzero()[0]
    return Histogram(bins, every[bins], every[bins][::-1].cumsum(), groups, codes)


def _groups(counts: Tensor) -> Tensor:
    """Return the group of every bin, (BINS,) uint8: about equally many entries in each."""
    before = counts.cumsum(0) - counts  # (BINS,) entries in lower bins
    return (before * 256 // counts.sum()).clamp_(max=255).to(torch.uint8)  # the top bins may be empty


def _bin_of(histograms: Sequence[Histogram], k: int) -> tuple[int, int]:
    """Return the bin of the k-th largest entry, and how many of its entries are among the k largest."""
    counts = np.zeros(BINS, dtype=np.int64)
    for histogram in histograms:
        counts[histogram.bins] += histogram.counts
    from_above = counts[::-1].cumsum()  # (BINS,) entries in the top 1, 2, 3... bins
    index = int(np.searchsorted(from_above, k))
    bin = BINS - 1 - index
    return bin, k - int(from_above[index] - counts[bin])


def _above(tau: Tensor, bound: float) -> Tensor:
    """Zero the entries with |τ| ≤ `bound`, compared in float32 if τ is wider: entries are counted by float32 bits."""
    if tau.dtype != torch.float64:
        return hardshrink(tau, bound)
    return torch.where(hardshrink(tau.float(), bound) != 0, tau, 0.0)


def _bits(theta_0: Tensor, theta_1: Tensor) -> Tensor:
    """Return the bits of |τ| as float32, viewed as int32."""
    return (theta_1 - theta_0).abs_().float().view(torch.int32)


def _in_bin(bits: Tensor, bin: int) -> tuple[Tensor, Tensor]:
    """Return the indices of a bin's entries and their lower 16 bits. Overwrites `bits`."""
    low = bits.bitwise_xor_(bin << 16)  # below 2¹⁶ exactly where the upper 16 bits match
    place = positions(low, lambda values: values < LOW)
    if bin == 0:
        place = place[low[place] > 0]  # zeros are not counted
    return place, low[place]
