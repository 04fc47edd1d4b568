"""Building blocks of merge methods: chunked arithmetic, and reductions independent of the number of threads."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evosearch.merging.sink import Sink

# Elements per chunk: a chunk and its scratch fit a CPU's cache; a GPU needs more to be busy.
CHUNK = {"cpu": 1 << 16}
CHUNK_ELSEWHERE = 1 << 25
BLOCK = 1 << 14  # torch splits longer sums between threads, which makes their rounding depend on the thread count


class Change(Protocol):
    """A change of a task vector, entry by entry or row by row."""

    def apply(self, tau: Tensor, start: int) -> Tensor:
        """Change a chunk that begins at index `start`, in place or as a new tensor. Zeros must stay zeros, and NaN NaN.

        A class may also have `compiled`, its description for the compiled kernels (`compiled.fused.Described`).
        """
        ...


def elementwise(
    function: Callable[[int, list[Tensor]], Tensor],
    tensors: Sequence[Tensor],
    dtype: torch.dtype,
    row: int = 1,
    sink: Sink | None = None,
) -> Tensor:
    """Apply `function` chunk by chunk, so that scratch memory does not grow with the tensors.

    Args:
        function: (index of the chunk's first element, the tensors' chunks in `dtype`) → the result's chunk. It must not
            write to the chunks, which may be views of the tensors.
        tensors: Inputs of one shape.
        dtype: Type of the arithmetic and of the result.
        row: Length of the rows that a chunk does not split.
        sink: Where to write the result; default: a new tensor.

    Returns:
        The sink's tensor, or one of the same shape in `dtype`.
    """
    into = sink or Sink(torch.empty(tensors[0].shape, dtype=dtype, device=tensors[0].device), dtype)
    for start, parts in chunks(tensors, dtype, row):
        into.write(start, function(start, parts))
    return into.tensor


def chunks(tensors: Sequence[Tensor], dtype: torch.dtype, row: int = 1) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield (index of the chunk's first element, the tensors' chunks in `dtype`), in order. Chunks are read-only.

    A chunk consists of complete rows of `row` elements: at least one.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    step = CHUNK.get(flat[0].device.type, CHUNK_ELSEWHERE)
    step = max(row, step - step % row)
    for start in range(0, flat[0].numel(), step):
        yield start, [tensor[start : start + step].to(dtype) for tensor in flat]


def same(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors share memory, as an adapter's unchanged tensors do with its base's."""
    return (
        x.data_ptr() == y.data_ptr()
        and (x.device, x.dtype, x.shape, x.stride()) == (y.device, y.dtype, y.shape, y.stride())
        and x.numel() > 0
    )


def positions(values: Tensor, test: Callable[[Any], Any]) -> Tensor:
    """Return the ascending indices at which flat `values` pass an elementwise test."""
    if values.device.type == "cpu":  # numpy: torch takes several times as long to compare and to list the indices
        return torch.from_numpy(np.flatnonzero(test(values.numpy())))
    found: Tensor = test(values)
    return found.nonzero().view(-1)


def dot(x: Tensor, y: Tensor) -> float:
    """Return Σ xᵢyᵢ: products in float32, summed in float64 over blocks of fixed size, on any number of threads."""
    return total(lambda _, pair: pair[0] * pair[1], (x, y), torch.float32)


def total(
    function: Callable[[int, list[Tensor]], Tensor], tensors: Sequence[Tensor], dtype: torch.dtype, row: int = 1
) -> float:
    """Sum what `elementwise` would return, with a result independent of threads and of the chunk size.

    Returns:
        The sum in float64; NaN if a term is not finite.
    """
    (one,) = totals(lambda start, parts: (function(start, parts),), tensors, dtype, row)
    return one


def totals(
    function: Callable[[int, list[Tensor]], Sequence[Tensor]],
    tensors: Sequence[Tensor],
    dtype: torch.dtype,
    row: int = 1,
) -> tuple[float, ...]:
    """Return several sums of one pass over the tensors, each like `total`.

    Args:
        function: (index of the chunk's first element, the tensors' chunks in `dtype`) → the terms of each sum, flat.
        tensors: Inputs of one shape.
        dtype: Type of the chunks.
        row: Length of the rows that a chunk does not split.
    """
    sums: list[list[float]] = []
    flat = [tensor.reshape(-1) for tensor in tensors]
    step = max(row, 64 * BLOCK - 64 * BLOCK % row)
    for start in range(0, max(1, flat[0].numel()), step):
        found = function(start, [tensor[start : start + step].to(dtype) for tensor in flat])
        sums = sums or [[] for _ in found]
        for column, terms in zip(sums, found, strict=True):
            end = terms.numel() - terms.numel() % BLOCK
            column += terms[:end].view(-1, BLOCK).sum(dim=1, dtype=torch.float64).tolist()
            column.append(terms[end:].sum(dtype=torch.float64).item())
    return tuple(math.fsum(column) if all(map(math.isfinite, column)) else math.nan for column in sums)


def row_length(tensor: Tensor) -> int:
    """Return the length of a tensor's rows: of its last dimension."""
    return tensor.shape[-1] if tensor.dim() else 1


def row_sums(terms: Tensor) -> Tensor:
    """Sum the rows of (rows, length) in float64, over blocks of fixed size: (rows,), on any number of threads."""
    blocks = [
        terms[:, start : start + BLOCK].sum(dim=1, dtype=torch.float64) for start in range(0, terms.shape[1], BLOCK)
    ]
    return blocks[0] if len(blocks) == 1 else sum(blocks[1:], start=blocks[0])


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the type for products in derivatives: that of the arithmetic, but float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: the rounding of decompositions and matrix products depends on how they are divided."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
