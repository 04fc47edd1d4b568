"""Which entries of task vectors are the largest: exact, streamed, over one tensor or over a whole model.

The bits of a non-negative float, read as a whole number, are in the order of the floats. The k-th largest of |τ| is
found in two steps: how many entries begin with which 16 bits (exponent and seven bits of the mantissa), and then, of
the one bin that holds it, the entries themselves. The counts depend on no density. Where there is a memory they are
kept, with a byte an entry that says roughly how large it is: what is looked at again is then one entry in 200.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from evosearch.merging.kernels import chunks, positions, same
from evosearch.merging.parameters import Parameters

BINS = 1 << 15  # upper halves of the bits of a float32 without sign
LOW = 1 << 16  # lower halves


@dataclass(frozen=True)
class Trim:
    """Which entries of a task vector stay: |τ| above `below`, and from index `end` on only those above `cut`.

    `below` is the next smaller number to `cut`, so that entries equal to the cut stay up to `end`.
    """

    cut: float
    below: float
    end: int

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """A chunk that begins at index `start`, what is trimmed set to zero. NaN stays, and shows in the result."""
        before = min(max(self.end - start, 0), tau.numel())  # entries of this chunk before `end`
        if before == tau.numel():
            return hardshrink(tau, self.below)
        if before == 0:
            return hardshrink(tau, self.cut)
        return torch.cat((hardshrink(tau[:before], self.below), hardshrink(tau[before:], self.cut)))


@dataclass(frozen=True)
class Histogram:
    """How many entries of |τ| begin with which 16 bits; zeros are not counted.

    Attributes:
        bins: (m,) int64, those that occur, ascending.
        counts: (m,) int64.
        groups: (BINS,) uint8, bins gathered into at most 256 groups of consecutive bins, or None.
        codes: (n,) uint8, every entry's group, or None.
    """

    bins: Tensor
    counts: Tensor
    groups: Tensor | None = None
    codes: Tensor | None = None


@dataclass(frozen=True)
class Delta:
    """A task vector τ = θ − θ₀ that is computed when it is looked at.

    Attributes:
        base, theta: its two ends; every look calls them anew.
        p: the parameters at this tensor: the type τ is computed in, and the memory.
        parent: whose task vector it is, as an index of `p.parents`.
    """

    base: Callable[[], Tensor]
    theta: Callable[[], Tensor]
    p: Parameters
    parent: int

    def histogram(self) -> Histogram:
        return self.p.recall_of(self.parent, "magnitudes", self._count)

    def members(self, bin: int, histogram: Histogram) -> tuple[Tensor, Tensor]:
        """The entries of one bin, by index: their indices, int64, and the lower halves of their bits, int32."""
        nowhere = torch.empty(0, dtype=torch.int64)
        if not (histogram.bins == bin).any():
            return nowhere, nowhere.int()
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
        counts = torch.zeros(BINS, dtype=torch.int64, device=base.device)
        if not same(base, theta):
            for _, ends in chunks((base, theta), self.p.dtype):
                bits = _bits(*ends)
                counts += torch.bincount(bits >> 16, minlength=BINS)
                counts[0] -= bits.numel() - bits.count_nonzero()
        counts = counts.cpu()
        bins = counts.nonzero().view(-1)
        if not bins.numel() or not self.p.room_for(self.parent, base.numel()):
            return Histogram(bins, counts[bins])
        before = counts.cumsum(0) - counts  # (BINS,) entries of lower bins
        groups = (before * 256 // counts.sum()).clamp_(max=255).to(torch.uint8)  # uppermost bins may hold none
        return Histogram(bins, counts[bins], groups, self._codes(groups.to(base.device)))

    def _codes(self, groups: Tensor) -> Tensor:
        parts = [groups[_bits(*ends) >> 16] for _, ends in chunks((self.base(), self.theta()), self.p.dtype)]
        return torch.cat(parts)


def trims(deltas: Sequence[Delta], sizes: Sequence[int], density: float) -> list[Trim | None]:
    """The trims that leave the top max(1, ⌊density·n⌋) entries of the task vectors laid end to end.

    Of entries of equal magnitude those of lowest index stay, the vectors in the order given. NaN counts as largest.

    Args:
        deltas: at least one, all of one dtype.
        sizes: how many entries each has.

    Returns:
        One a task vector, None where all of it stays or what would be trimmed is zero.
    """
    k, n = max(1, int(density * sum(sizes))), sum(sizes)
    if k >= n:
        return [None] * len(deltas)
    histograms = [delta.histogram() for delta in deltas]
    if k >= sum(int(histogram.counts.sum()) for histogram in histograms):
        return [None] * len(deltas)
    bin, rank = _bin_of(histograms, k)
    found = [delta.members(bin, histogram) for delta, histogram in zip(deltas, histograms, strict=True)]
    lows = torch.cat([low for _, low in found])
    low = int(lows.kthvalue(lows.numel() - rank + 1).values)
    equal_kept = rank - int((lows > low).count_nonzero())
    cut = torch.tensor(bin << 16 | low, dtype=torch.int32).view(torch.float32)
    dtype = deltas[0].p.dtype
    below = torch.nextafter(cut.to(dtype), torch.zeros((), dtype=dtype)).item()
    made: list[Trim | None] = []
    for (places, own), size in zip(found, sizes, strict=True):
        equal = places[own == low]
        here = min(equal_kept, equal.numel())
        equal_kept -= here
        end = size if here == equal.numel() else int(equal[here - 1]) + 1 if here else 0
        made.append(Trim(cut.item(), below, end))
    return made


def _bin_of(histograms: Sequence[Histogram], k: int) -> tuple[int, int]:
    """The bin of the k-th largest, and how many of the bin's entries are among the k largest."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    for histogram in histograms:
        counts[histogram.bins] += histogram.counts
    from_above = counts.flip(0).cumsum(0)  # (BINS,) entries in the uppermost 1, 2, 3... bins
    index = int(torch.searchsorted(from_above, k))
    bin = BINS - 1 - index
    return bin, k - int(from_above[index] - counts[bin])


def _bits(theta_0: Tensor, theta_1: Tensor) -> Tensor:
    """The bits of |τ| as float32, read as int32."""
    return (theta_1 - theta_0).abs_().float().view(torch.int32)


def _in_bin(bits: Tensor, bin: int) -> tuple[Tensor, Tensor]:
    """Where the bits, which are written over, are those of a bin: the indices, and the lower halves there."""
    low = bits.bitwise_xor_(bin << 16)  # below 2¹⁶ exactly where the upper halves agree
    place = positions(low, lambda values: values < LOW)
    if bin == 0:
        place = place[low[place] > 0]  # zeros are not counted
    return place, low[place]
