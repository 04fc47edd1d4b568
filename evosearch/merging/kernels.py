"""What the methods are built of: arithmetic in chunks, and reductions that do not depend on threads."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Elements worked on at once. A chunk and its scratch stay in a CPU's cache; a GPU wants enough to be busy.
CHUNK = {"cpu": 1 << 16}
CHUNK_ELSEWHERE = 1 << 25
PART = 1 << 14  # a sum over more elements is split between threads, and then depends on how many there are


def elementwise(
    function: Callable[[int, list[Tensor]], Tensor], tensors: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """`function` over tensors of one shape, chunk by chunk, so that scratch memory does not grow with the tensor.

    Args:
        function: (index of the chunk's first element, the tensors' chunks in `dtype`) → the result's chunk. It may not
            write to the chunks, which can be the tensors themselves.

    Returns:
        A new tensor of the same shape, in `dtype`.
    """
    out = torch.empty(tensors[0].shape, dtype=dtype, device=tensors[0].device)
    sink = out.view(-1)
    for start, parts in chunks(tensors, dtype):
        sink[start : start + parts[0].numel()] = function(start, parts)
    return out


def chunks(tensors: Sequence[Tensor], dtype: torch.dtype) -> Iterator[tuple[int, list[Tensor]]]:
    """(index of the chunk's first element, the tensors' chunks in `dtype`), in order; not to be written to."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    step = CHUNK.get(flat[0].device.type, CHUNK_ELSEWHERE)
    for start in range(0, flat[0].numel(), step):
        yield start, [tensor[start : start + step].to(dtype) for tensor in flat]


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are one in memory, as an adapter's are where it leaves its base alone."""
    return (
        x.data_ptr() == y.data_ptr()
        and (x.device, x.dtype, x.shape, x.stride()) == (y.device, y.dtype, y.shape, y.stride())
        and x.numel() > 0
    )


def positions(values: Tensor, test: Callable[[Any], Any]) -> Tensor:
    """The indices, ascending, at which flat `values` pass a test made of comparisons."""
    if values.device.type == "cpu":  # by numpy: torch takes several times as long to compare, and to list few indices
        return torch.from_numpy(np.flatnonzero(test(values.numpy())))
    found: Tensor = test(values)
    return found.nonzero().view(-1)


def dot(x: Tensor, y: Tensor) -> float:
    """Σ xᵢyᵢ, the same on any number of threads: products in float32, parts of fixed size, summed in float64."""
    return total(lambda _, pair: pair[0] * pair[1], (x, y), torch.float32)


def total(function: Callable[[int, list[Tensor]], Tensor], tensors: Sequence[Tensor], dtype: torch.dtype) -> float:
    """The sum of what `elementwise` would give, the same on any number of threads and in chunks of any size.

    Returns:
        The sum in float64, NaN where a term is not finite.
    """
    sums: list[float] = []
    flat = [tensor.reshape(-1) for tensor in tensors]
    step = 64 * PART
    for start in range(0, flat[0].numel(), step):
        terms = function(start, [tensor[start : start + step].to(dtype) for tensor in flat])
        whole = terms.numel() - terms.numel() % PART
        sums += terms[:whole].view(-1, PART).sum(dim=1, dtype=torch.float64).tolist()
        sums.append(terms[whole:].sum(dtype=torch.float64).item())
    return math.fsum(sums) if all(map(math.isfinite, sums)) else math.nan
