"""sce: select entries by variance, weigh models by their changes, erase minority signs (Wan et al. 2024)."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from evosearch.merging.compiled import fused
from evosearch.merging.election import nonzero, vote
from evosearch.merging.kernels import add_multiple, at_least_float32, elementwise, totals
from evosearch.merging.magnitudes import Delta, Trim, compiled_histogram, compiled_trim, largest
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import merge_method
from evosearch.recipe.shapes import MergekitForm, Param


@merge_method(
    "sce",
    paper="arXiv:2408.07990",
    summary="Combines fine-tunes of different strength: weighs each by its changes, without minority signs.",
    needs_base=True,
    models=(2, None),
    parameters={"select_topk": Param(0.0, 1.0, default=1.0, strict=True, open_low=True)},
    mergekit=MergekitForm("sce"),
    norms=True,
)
def sce(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return θ₀ + Σ wᵢaᵢτᵢ / Σ wᵢaᵢ, entry by entry, with τᵢ = θᵢ − θ₀  (Wan et al. 2024).

    Select: with `select_topk` below 1, only the max(1, ⌊select_topk·k⌋) entries with the largest variance over the
    models keep their τᵢ, where k entries have any; of equal ones, those with the lowest index. Calculate: wᵢ is the
    mean square of what is left of τᵢ, equal for all if nothing is. Erase: aᵢ is 1 where τᵢ has the sign of Σ τᵢ, plus
    at a sum of 0.
    """
    assert base is not None
    if fused.applies(p.dtype, (base, *parents), p.sink):
        return _compiled(base, parents, p)
    selected = _selected(base, parents, p)
    squares = totals(
        lambda start, chunks: [tau.square() for tau in selected(start, chunks)],
        (base, *parents),
        at_least_float32(p.dtype),
    )
    weights = _weights(squares)

    def erase(start: int, chunks: list[Tensor]) -> Tensor:
        taus = selected(start, chunks)
        sign = vote(taus).add_(0.5).sign_()  # ±1, plus at zero
        merged, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
        for tau, w in zip(taus, weights, strict=True):
            agreeing = tau.mul_(sign).clamp_(min=0)  # |τᵢ| where it has the sign, else 0
            add_multiple(merged, agreeing, w)
            add_multiple(divisor, agreeing.sign_(), w)
        return merged.div_(nonzero(divisor)).mul_(sign).add_(chunks[0])

    return elementwise(erase, (base, *parents), p.dtype, sink=p.sink)


def _compiled(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Merge with the compiled kernels."""
    if p["select_topk"] >= 1:
        squares = p.recall_of_all("squares", True, lambda: fused.selected_squares(base, parents, None))
        return fused.erase(base, parents, _weights(squares), None, p.sink)
    histogram = p.recall_of_all(
        "variances", True, lambda: compiled_histogram(base, parents, lambda: p.reserve(0, base.numel()))
    )
    k = max(1, int(p["select_topk"] * histogram.total))
    trim = compiled_trim(base, parents, histogram, k) or Trim(0.0, 0.0, 0)  # which trims nothing
    return fused.erase(base, parents, _weights(fused.selected_squares(base, parents, trim)), trim, p.sink)


def _weights(squares: Sequence[float]) -> list[float]:
    """Return wᵢ, from the sums of squares; NaN stays NaN."""
    summed = sum(squares)
    return [one / summed for one in squares] if summed else [1.0 / len(squares)] * len(squares)


def _selected(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> Callable[[int, list[Tensor]], list[Tensor]]:
    """Return the function that gives the selected τᵢ of a chunk of θ₀ and θᵢ, as new tensors."""
    if p["select_topk"] >= 1:
        return lambda _, chunks: _taus(chunks)
    variances = elementwise(lambda _, chunks: _variance(_taus(chunks)), (base, *parents), torch.float32).view(-1)
    varying = int(variances.count_nonzero())
    if varying:
        origin = variances.new_zeros(1).expand(len(variances))
        wide = Parameters({}, {}, torch.float32)
        (trim,) = largest(
            [Delta(lambda: origin, lambda: variances, wide, 0)],
            [len(variances)],
            max(1, int(p["select_topk"] * varying)),
        )
        variances = trim.apply(variances, 0) if trim else variances

    def select(start: int, chunks: list[Tensor]) -> list[Tensor]:
        kept = variances[start : start + chunks[0].numel()] != 0
        return [tau.mul_(kept) for tau in _taus(chunks)]  # NaN stays NaN

    return select


def _taus(chunks: list[Tensor]) -> list[Tensor]:
    return [theta - chunks[0] for theta in chunks[1:]]


def _variance(taus: list[Tensor]) -> Tensor:
    """Return the population variance over the models."""
    mean = reduce(torch.add, taus) / len(taus)
    return reduce(torch.add, [(tau - mean).square_() for tau in taus]) / len(taus)
