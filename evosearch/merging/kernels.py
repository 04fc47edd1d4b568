"""What the methods are built of: arithmetic in chunks, reductions that do not depend on threads, exact selection."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Elements worked on at once. A chunk and its scratch stay in a CPU's cache; a GPU wants enough to be busy.
CHUNK = {"cpu": 1 << 17}
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
    first = tensors[0]
    out = torch.empty(first.shape, dtype=dtype, device=first.device)
    sink, flat = out.view(-1), [tensor.reshape(-1) for tensor in tensors]
    step = CHUNK.get(first.device.type, CHUNK_ELSEWHERE)
    for start in range(0, first.numel(), step):
        part = slice(start, start + step)
        sink[part] = function(start, [tensor[part].to(dtype) for tensor in flat])
    return out


def dot(x: Tensor, y: Tensor) -> float:
    """Σ xᵢyᵢ, the same on any number of threads: products in float32, parts of fixed size, summed in float64."""
    total: list[float] = []
    x, y = x.reshape(-1), y.reshape(-1)
    whole = x.numel() - x.numel() % PART
    step = 64 * PART
    for start in range(0, whole, step):
        part = slice(start, min(start + step, whole))
        product = x[part].float() * y[part].float()
        total += product.view(-1, PART).sum(dim=1, dtype=torch.float64).tolist()
    total.append((x[whole:].float() * y[whole:].float()).sum(dtype=torch.float64).item())
    return math.fsum(total) if all(map(math.isfinite, total)) else math.nan


def kth_largest(values: Tensor, k: int) -> tuple[float, int, int]:
    """The k-th largest of `values`, whose order is lost.

    Args:
        values: (n,) float32, scratch.
        k: 1 ≤ k ≤ n.

    Returns:
        The value; how many of its equals are among the k largest; how many there are in all.
    """
    if values.device.type == "cpu":
        array = values.numpy()
        array.partition(array.size - k)  # ten times as fast as torch.kthvalue on a CPU
        cut = array[array.size - k].item()
        above = int((array[array.size - k :] > cut).sum())
        return cut, k - above, int((array == cut).sum())
    top = torch.topk(values, k, sorted=False).values
    cut = top.min().item()
    return cut, k - int((top > cut).sum()), int((values == cut).sum())
