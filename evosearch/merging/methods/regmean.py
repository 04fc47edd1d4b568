"""regmean: linear layers whose outputs are closest to those of all models (RegMean, Jin et al. 2023)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.kernels import add_multiple, at_least_float32, elementwise, one_thread, total
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.merging.sink import Sink
from evosearch.recipe.shapes import GRAM, Param

PARAMETERS = {
    "weight": Param(0.0, 1.5, default=1.0, per_model=True, strict=True),
    "alpha": Param(0.0, 1.0, default=0.9, strict=True),
}
ROWS = 1024  # of a matrix that are computed with at a time
RIDGE = 1e-6  # of the mean of a Gram matrix's diagonal, which keeps the sum positive definite


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ = ⟨dL/dW A⁻¹, (Wᵢ − W)Ĝᵢ⟩ with A = Σ wᵢĜᵢ; ⟨dL/dθ, θᵢ − θ⟩ / Σ w where the models are averaged."""
    weights, first = p.each("weight"), parents[0]
    if not _reached(p, weights):
        dtype, divisor = at_least_float32(p.dtype), sum(weights)
        slopes = [total(lambda _, c: c[0] * (c[1] - c[2]), (grad, one, first), dtype) for one in parents]
        mean = sum(w * slope for w, slope in zip(weights, slopes, strict=True)) / divisor
        return {"weight": tuple((slope - mean) / divisor for slope in slopes)}
    parts: list[list[float]] = [[] for _ in parents]
    with one_thread():
        system = _System.of(parents, p, weights)
        for rows in _parts(len(first)):
            slope = grad[rows].to(torch.float64, copy=True, memory_format=torch.contiguous_format)
            toward = system.solve(slope)  # dL/dW A⁻¹
            merged = system.solve(system.right(rows))  # W − W₁
            for i, found in enumerate(parts):
                away = system.product(i, system.move(i, rows).sub_(merged))  # (Wᵢ − W)Ĝᵢ
                found.append(total(lambda _, pair: pair[0] * pair[1], (toward, away), torch.float64))
    return {"weight": tuple(map(math.fsum, parts))}


@merge_method(
    "regmean",
    paper="arXiv:2212.09849",
    summary="Merges each linear layer so that its outputs on a sample of texts are closest to those of all models.",
    takes_base=False,
    parameters=PARAMETERS,
    differentiable=("weight",),
    derivative=derivative,
    statistic=GRAM,
)
def regmean(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return W = Σ wᵢWᵢĜᵢ (Σ wᵢĜᵢ)⁻¹ for a linear weight (out, in)  (Jin et al. 2023, with weights).

    Ĝᵢ = α Gᵢ + (1−α) diag(Gᵢ) with the Gram matrix Gᵢ of the layer's inputs. Other tensors are averaged: Σ wᵢθᵢ / Σ wᵢ.
    The equations are solved in float64 by Cholesky decomposition, with `RIDGE` added to every Ĝᵢ: on one thread, whose
    results are the same on any machine's number of them.

    Raises:
        CandidateError: All weights are zero.
    """
    weights, first = p.each("weight"), parents[0]
    if not sum(weights) > 0.0:
        raise CandidateError("materialize", f"regmean: weights {weights} sum to zero, which they are divided by")
    if not _reached(p, weights):
        return elementwise(_average(weights), parents, p.dtype, sink=p.sink)
    into = p.sink or Sink(torch.empty(first.shape, dtype=p.dtype, device=first.device), p.dtype)
    with one_thread():
        system = _System.of(parents, p, weights)
        for rows in _parts(len(first)):
            merged = system.solve(system.right(rows)).add_(first[rows].double())
            into.write(rows.start * first.shape[1], merged.to(p.dtype).view(-1))
    return into.tensor


def _reached(p: Parameters, weights: Sequence[float]) -> bool:
    """Return whether the layer has equations: none if it has no matrices, or if no text reached it, as some experts."""
    return any(w > 0 and bool(gram.diagonal().any()) for gram, w in zip(p.statistics, weights, strict=False))


def _average(weights: Sequence[float]) -> Callable[[int, list[Tensor]], Tensor]:
    divisor = sum(weights)

    def average(_: int, thetas: list[Tensor]) -> Tensor:
        merged = thetas[0] * (weights[0] / divisor)
        for theta, w in zip(thetas[1:], weights[1:], strict=True):
            add_multiple(merged, theta, w / divisor)
        return merged

    return average


@dataclass(frozen=True)
class _System:
    """The equations (W − W₁) A = Σ wᵢ(Wᵢ − W₁)Ĝᵢ with A = Σ wᵢĜᵢ, in float64.

    Differences from the first model are small in fine-tunes of one base, and so is their rounding. Beside the inputs,
    A is in memory, decomposed in place, and a few blocks of `ROWS` rows.
    """

    parents: Sequence[Tensor]  # (out, in) Wᵢ
    grams: Sequence[Tensor]  # (in, in) Gᵢ
    weights: Sequence[float]
    alpha: float
    root: Tensor  # (in, in) Cholesky factor of A, lower

    @classmethod
    def of(cls, parents: Sequence[Tensor], p: Parameters, weights: Sequence[float]) -> "_System":
        grams, alpha = p.statistics, p["alpha"]
        sums = torch.zeros(grams[0].shape, dtype=torch.float64, device=grams[0].device)
        for gram, weight in zip(grams, weights, strict=True):
            for rows in _parts(len(gram)):
                sums[rows].add_(_shrunk(gram, alpha, rows), alpha=weight)
        root = torch.linalg.cholesky(sums.mT, out=sums.mT)  # in place: LAPACK's matrices are stored by column
        return cls(parents, grams, weights, alpha, root)

    def move(self, i: int, rows: slice) -> Tensor:
        """Return rows of Wᵢ − W₁."""
        return self.parents[i][rows].double() - self.parents[0][rows].double()

    def product(self, i: int, x: Tensor) -> Tensor:
        """Return xĜᵢ for x (rows, in)."""
        found = torch.zeros_like(x)
        for rows in _parts(len(self.grams[i])):
            found.addmm_(x[:, rows], _shrunk(self.grams[i], self.alpha, rows))
        return found

    def right(self, rows: slice) -> Tensor:
        """Return rows of the right side; the first model's share is zero."""
        found = torch.zeros_like(self.parents[0][rows], dtype=torch.float64, memory_format=torch.contiguous_format)
        for i in range(1, len(self.parents)):
            found.add_(self.product(i, self.move(i, rows)), alpha=self.weights[i])
        return found

    def solve(self, right: Tensor) -> Tensor:
        """Return X (rows, in) with X A = right, which it overwrites."""
        half = torch.linalg.solve_triangular(self.root.mT, right, upper=True, left=False, out=right)
        found: Tensor = torch.linalg.solve_triangular(self.root, half, upper=False, left=False, out=half)
        return found


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS))


def _shrunk(gram: Tensor, alpha: float, rows: slice) -> Tensor:
    """Return rows (rows, in) of α G + (1−α) diag(G), with a ridge, in float64."""
    diagonal = gram.diagonal().double()
    shrunk = gram[rows].double() * alpha
    shrunk.diagonal(rows.start).copy_(diagonal[rows] + RIDGE * diagonal.mean())
    return shrunk
