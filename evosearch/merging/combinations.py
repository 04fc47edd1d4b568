"""Merges Σ cᵢxᵢ of the parents whose coefficients cᵢ depend on their inner products.

The vectors xᵢ are the task vectors θᵢ − θ₀ with a base, else the models θᵢ. Everything that such a method computes of
them (norms, angles, means on a sphere) follows from their Gram matrix Gᵢⱼ = ⟨xᵢ, xⱼ⟩, so that the formula itself works
on K × K numbers in float64. The Gram matrix does not change between candidates and is remembered.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evosearch.merging.compiled import fused
from evosearch.merging.kernels import at_least_float32, chunks, elementwise, row_length, row_sums, totals
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.sums import add_deltas, weighted_sum

# (Gram matrices (..., K, K), weights (K,)), both float64 on the CPU → coefficients (..., K)
Coefficients = Callable[[Tensor, Tensor], Tensor]


def combine(
    base: Tensor | None,
    parents: Sequence[Tensor],
    p: Parameters,
    coefficients: Coefficients,
    weights: Sequence[float],
    *,
    by_row: bool = False,
) -> Tensor:
    """Return θ₀ + Σ cᵢτᵢ with a base, else Σ cᵢθᵢ.

    Args:
        base: θ₀, or None.
        parents: θᵢ.
        p: Parameters: the arithmetic's type and the memory.
        coefficients: Returns cᵢ.
        weights: wᵢ, for `coefficients`.
        by_row: Rows (vectors along the last dimension) have coefficients of their own.
    """
    w = torch.tensor(weights, dtype=torch.float64)
    if by_row:
        return _combine_rows(base, parents, p, lambda gram: coefficients(gram, w))
    found: list[float] = coefficients(gram(base, parents, p), w).tolist()
    return weighted_sum(parents, found, p) if base is None else add_deltas(base, parents, found, p)


def contract(
    base: Tensor | None,
    parents: Sequence[Tensor],
    p: Parameters,
    grad: Tensor,
    coefficients: Coefficients,
    weights: Sequence[float],
    *,
    by_row: bool = False,
) -> tuple[float, ...]:
    """Return dL/dwᵢ = Σⱼ ∂cⱼ/∂wᵢ ⟨dL/dθ, xⱼ⟩ of `combine`; autograd differentiates the K coefficients.

    Without a base, ⟨dL/dθ, θⱼ⟩ is split into ⟨dL/dθ, θ₁⟩ + ⟨dL/dθ, θⱼ − θ₁⟩: differences of fine-tunes of one base are
    small, and their own sum keeps the precision.
    """
    if by_row:
        grams, slopes = _row_products(base, parents, grad)
    else:
        origin = parents[0] if base is None else base
        dtype = at_least_float32(p.dtype)
        moves = totals(lambda _, c: [c[0] * (theta - c[1]) for theta in c[2:]], (grad, origin, *parents), dtype)
        (start,) = totals(lambda _, c: [c[0] * c[1]], (grad, origin), dtype) if base is None else (0.0,)
        grams, slopes = gram(base, parents, p), torch.tensor([start + move for move in moves], dtype=torch.float64)
    with torch.inference_mode(mode=False), torch.enable_grad():
        w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
        loss = (coefficients(grams.clone(), w) * slopes.clone()).sum()
        (found,) = torch.autograd.grad(loss, w)
    numbers: list[float] = found.nan_to_num(nan=torch.nan, posinf=torch.nan, neginf=torch.nan).tolist()
    return tuple(numbers)


def gram(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
    """Return the inner products of the flat vectors: (K, K) float64 on the CPU; NaN if a parent is not finite."""
    return p.recall_of_all("gram", base is not None, lambda: _gram(base, parents))


def dots(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Return ⟨a, a⟩, ⟨a, b⟩ and ⟨b, b⟩: products in float32, summed in float64 over blocks of fixed size."""
    if fused.applies(torch.float32, (a, b)):
        (squared_a, product), (squared_b,) = fused.products(None, (a, b), wide=False)
        return squared_a, product, squared_b
    squared_a, product, squared_b = totals(lambda _, c: (c[0] * c[0], c[0] * c[1], c[1] * c[1]), (a, b), torch.float32)
    return squared_a, product, squared_b


def _gram(base: Tensor | None, parents: Sequence[Tensor]) -> Tensor:
    found = torch.empty((len(parents), len(parents)), dtype=torch.float64)
    if fused.applies(torch.float32, (*_start(base), *parents)):
        for i, row in enumerate(fused.products(base, parents, wide=True)):
            found[i, i:] = found[i:, i] = torch.tensor(row, dtype=torch.float64)
        return found
    for i in range(len(parents)):

        def products(_: int, c: list[Tensor]) -> list[Tensor]:
            xs = c if base is None else [theta - c[0] for theta in c[1:]]
            return [xs[0] * x for x in xs]

        own = torch.tensor(totals(products, (*_start(base), *parents[i:]), torch.float64), dtype=torch.float64)
        found[i, i:], found[i:, i] = own, own
    return found


def _start(base: Tensor | None) -> tuple[Tensor, ...]:
    return () if base is None else (base,)


def _combine_rows(
    base: Tensor | None, parents: Sequence[Tensor], p: Parameters, coefficients: Callable[[Tensor], Tensor]
) -> Tensor:
    length = row_length(parents[0])

    def add(_: int, parts: list[Tensor]) -> Tensor:
        rows = [part.view(-1, length) for part in parts]
        thetas = rows if base is None else rows[1:]
        xs = thetas if base is None else [theta - rows[0] for theta in thetas]
        c = coefficients(_grams([x.double() for x in xs])).to(xs[0].device, p.dtype)  # (rows, K)
        merged = xs[0] * c[:, :1]
        for i, x in enumerate(xs[1:], start=1):
            merged.addcmul_(x, c[:, i : i + 1])
        return (merged if base is None else merged.add_(rows[0])).view(-1)

    return elementwise(add, (*_start(base), *parents), p.dtype, length, p.sink)


def _row_products(base: Tensor | None, parents: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gram matrices (rows, K, K) and the products ⟨dL/dθ, xᵢ⟩ (rows, K) of all rows, in float64."""
    length = row_length(parents[0])
    grams, slopes = [], []
    for _, parts in chunks((grad, *_start(base), *parents), torch.float64, length):
        slope, *rows = [part.view(-1, length) for part in parts]
        xs = rows if base is None else [theta - rows[0] for theta in rows[1:]]
        grams.append(_grams(xs))
        slopes.append(torch.stack([row_sums(slope * x) for x in xs], dim=1).cpu())
    return torch.cat(grams), torch.cat(slopes)


def _grams(xs: Sequence[Tensor]) -> Tensor:
    """Return the Gram matrix of every row: (rows, K, K) float64 on the CPU."""
    found = torch.empty((len(xs[0]), len(xs), len(xs)), dtype=torch.float64, device=xs[0].device)
    for i, x in enumerate(xs):
        for j in range(i + 1):
            found[:, i, j] = found[:, j, i] = row_sums(x * xs[j])
    return found.cpu()


def norms(gram: Tensor) -> Tensor:
    """Return ‖xᵢ‖ of Gram matrices: (..., K)."""
    return gram.diagonal(dim1=-2, dim2=-1).sqrt()


def cosines(gram: Tensor) -> Tensor:
    """Return the cosine of every pair, in [−1, 1]: (..., K, K). A vector of zeros is orthogonal to all."""
    lengths = norms(gram)
    products = lengths.unsqueeze(-1) * lengths.unsqueeze(-2)
    return (gram / torch.where(products == 0, 1.0, products)).clamp(-1.0, 1.0)
