"""regmean: linear layers whose outputs are closest to those of all models (RegMean, Jin et al. 2023)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.kernels import at_least_float32, elementwise, one_thread, total
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Slope, merge_method
from evosearch.recipe.shapes import GRAM, Param

RIDGE = 1e-6  # of the mean of a Gram matrix's diagonal, which keeps the sum positive definite


def derivative(base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor) -> Mapping[str, Slope]:
    """Return dL/dwᵢ = ⟨dL/dW A⁻¹, (Wᵢ − W)Ĝᵢ⟩ with A = Σ wᵢĜᵢ; ⟨dL/dθ, θᵢ − θ⟩ / Σ w where the models are averaged."""
    weights, first = p.each("weight"), parents[0]
    if not p.statistics:
        dtype, divisor = at_least_float32(p.dtype), sum(weights)
        slopes = [total(lambda _, c: c[0] * (c[1] - c[2]), (grad, one, first), dtype) for one in parents]
        mean = sum(w * slope for w, slope in zip(weights, slopes, strict=True)) / divisor
        return {"weight": tuple((slope - mean) / divisor for slope in slopes)}
    with one_thread():
        system = _System.of(parents, p, weights)
        toward = system.solve(grad.double().contiguous())  # dL/dW A⁻¹
        merged = system.solve(system.right)  # W − W₁
        found = [
            total(lambda _, pair: pair[0] * pair[1], (toward, (move - merged) @ gram), torch.float64)
            for move, gram in zip(system.moves, system.grams, strict=True)
        ]
    return {"weight": tuple(found)}


@merge_method(
    "regmean",
    paper="arXiv:2212.09849",
    summary="Merges each linear layer so that its outputs on a sample of texts are closest to those of all models.",
    takes_base=False,
    parameters={
        "weight": Param(0.0, 1.5, default=1.0, per_model=True, strict=True),
        "alpha": Param(0.0, 1.0, default=0.9, strict=True),
    },
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
    if not p.statistics:
        return elementwise(_average(weights), parents, p.dtype, sink=p.sink)
    with one_thread():
        system = _System.of(parents, p, weights)
        return (system.solve(system.right) + first.double()).to(p.dtype)


def _average(weights: Sequence[float]) -> Callable[[int, list[Tensor]], Tensor]:
    divisor = sum(weights)

    def average(_: int, thetas: list[Tensor]) -> Tensor:
        merged = thetas[0] * (weights[0] / divisor)
        for theta, w in zip(thetas[1:], weights[1:], strict=True):
            merged.add_(theta, alpha=w / divisor)
        return merged

    return average


@dataclass(frozen=True)
class _System:
    """The equations (W − W₁) A = Σ wᵢ(Wᵢ − W₁)Ĝᵢ with A = Σ wᵢĜᵢ, in float64.

    Differences from the first model are small in fine-tunes of one base, and so is their rounding.
    """

    moves: list[Tensor]  # (out, in) Wᵢ − W₁
    grams: list[Tensor]  # (in, in) Ĝᵢ
    right: Tensor  # (out, in)
    root: Tensor  # (in, in) Cholesky factor of A

    @classmethod
    def of(cls, parents: Sequence[Tensor], p: Parameters, weights: Sequence[float]) -> "_System":
        first = parents[0].double().contiguous()
        moves = [parent.double().contiguous() - first for parent in parents]
        grams = [_shrunk(gram.double().contiguous(), p["alpha"]) for gram in p.statistics]
        right, sums = torch.zeros_like(first), torch.zeros_like(grams[0])
        for move, gram, weight in zip(moves, grams, weights, strict=True):
            right += weight * (move @ gram)
            sums += weight * gram
        if not sums.any():  # no text reaches this layer: the plain mean
            sums.diagonal().fill_(1.0)
            shares = zip(moves, weights, strict=True)
            right = torch.stack([move * (weight / sum(weights)) for move, weight in shares]).sum(dim=0)
        return cls(moves, grams, right, torch.linalg.cholesky(sums))

    def solve(self, right: Tensor) -> Tensor:
        """Return X (out, in) with X A = right."""
        return torch.cholesky_solve(right.t().contiguous(), self.root).t().contiguous()


def _shrunk(gram: Tensor, alpha: float) -> Tensor:
    """Return α G + (1−α) diag(G), with a ridge."""
    diagonal = gram.diagonal()
    shrunk = alpha * gram
    shrunk.diagonal().copy_(diagonal + RIDGE * diagonal.mean())
    return shrunk
