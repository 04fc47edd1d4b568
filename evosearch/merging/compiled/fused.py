"""Calls of the compiled kernels.

They apply to float32 arithmetic on contiguous tensors of the CPU (`applies`), with changes of task vectors that
describe themselves (`compiled`). In all other cases the eager functions run, which have the same results.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evosearch.merging.compiled.library import Array, Change, Plan, Trim, library
from evosearch.merging.sink import Sink

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MODELS, DELTAS, ELECT, REINFORCED, SELECTED = range(5)
OUTER, INNER, OUTLIERS, DROP, PRUNE, WIDE = (1 << bit for bit in range(6))
SIGNS = {"magnitude": 0, "count": 1, "count_strict": 2}
BLOCK, BINS = 1 << 14, 1 << 15  # as in `kernels` and `magnitudes`


class Described(Protocol):
    """A change of a task vector that the compiled kernels know."""

    def compiled(self) -> Change | None:
        """Return its description; None if it needs the eager function."""
        ...


def applies(dtype: torch.dtype, tensors: Sequence[Tensor], sink: Sink | None = None) -> bool:
    """Return whether the kernels take these tensors, in arithmetic of type `dtype`."""
    return (
        dtype == torch.float32
        and all(t.device.type == "cpu" and t.dtype in TYPES and t.is_contiguous() and t.numel() for t in tensors)
        and (sink is None or (sink.tensor.dtype in TYPES and sink.dtype in TYPES))
        and library() is not None
    )


def weighted_sum(tensors: Sequence[Tensor], factors: Sequence[float], sink: Sink | None) -> Tensor:
    """Return Σ fᵢxᵢ."""
    return _merge(MODELS, None, tensors, factors=factors, sink=sink)


def add(
    base: Tensor,
    parents: Sequence[Tensor],
    factors: Sequence[float],
    changes: Sequence[Any] | None,
    zero: float | None,
    sink: Sink | None,
) -> Tensor | None:
    """Return θ₀ + (Σ fᵢ cᵢ(τᵢ) + zero), as `sums.add_deltas`; None if a change is unknown."""
    described = _described(changes)
    if changes is not None and described is None:
        return None
    return _merge(DELTAS, base, parents, factors=factors, changes=described, zero=zero, sink=sink)


def elect(
    base: Tensor,
    parents: Sequence[Tensor],
    factors: Sequence[float],
    weights: Sequence[float],
    changes: Sequence[Any] | None,
    settings: tuple[float, str, bool],
    sink: Sink | None,
) -> Tensor | None:
    """Return the merge of `election.elect_deltas`, with (λ, sign method, normalize); None if a change is unknown."""
    described = _described(changes)
    if changes is not None and described is None:
        return None
    lam, sign_method, normalize = settings
    own = {"lam": lam, "signs": SIGNS[sign_method], "normalize": normalize}
    return _merge(ELECT, base, parents, factors=factors, weights=weights, changes=described, sink=sink, settings=own)


def reinforce(
    base: Tensor, parents: Sequence[Tensor], epsilon: float, scales: Sequence[float], sink: Sink | None
) -> Tensor:
    """Return the merge of `reinforced.add_changes`."""
    alone = [scale - 1 for scale in scales]
    return _merge(REINFORCED, base, parents, factors=alone, sink=sink, settings={"epsilon": epsilon})


def erase(base: Tensor, parents: Sequence[Tensor], weights: Sequence[float], select: Any, sink: Sink | None) -> Tensor:
    """Return the last step of `sce`; `select` is a trim of the variances, or None without a selection."""
    return _merge(SELECTED, base, parents, weights=weights, sink=sink, settings=_selection(select))


def selected_squares(base: Tensor, parents: Sequence[Tensor], select: Any) -> list[float]:
    """Return Σ τᵢ² of the selected entries, squared in float32 and summed in float64."""
    plan, kept = _plan(SELECTED, base, parents, settings=_selection(select))
    return _sizes(plan, kept, len(parents))


def absolute_sums(base: Tensor, parents: Sequence[Tensor], changes: Sequence[Any] | None) -> list[float] | None:
    """Return ‖cᵢ(τᵢ)‖₁; None if a change is unknown."""
    described = _described(changes)
    if changes is not None and described is None:
        return None
    plan, kept = _plan(ELECT, base, parents, changes=described)
    return _sizes(plan, kept, len(parents))


def products(base: Tensor | None, vectors: Sequence[Tensor], *, wide: bool) -> list[list[float]]:
    """Return the inner products of all pairs xᵢ, i ≤ j: of the vectors, or of their differences from the base.

    Products are in float64 with `wide`, else in float32; sums are in float64.
    """
    size, count = vectors[0].numel(), len(vectors)
    blocks = np.empty(((size + BLOCK - 1) // BLOCK, count * (count + 1) // 2))
    origin = None if base is None else ctypes.byref(_array(base))
    _library().products(origin, _arrays(vectors), count, size, wide, blocks.ctypes.data, torch.get_num_threads())
    sums = iter(_column_sums(blocks))
    return [[next(sums) for _ in range(i, count)] for i in range(count)]


def histogram(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """Count the nonzero entries of |τ|, or of the variance of several models, by upper 16 bits: (BINS,) int64."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    _library().histogram(*_source(base, models), counts.data_ptr(), torch.get_num_threads())
    return counts


def codes(base: Tensor, models: Sequence[Tensor], groups: Tensor) -> Tensor:
    """Return the group of every entry (n,), from the group of every bin: (BINS,) uint8."""
    out = torch.empty(base.numel(), dtype=torch.uint8)
    _library().codes(*_source(base, models), groups.data_ptr(), out.data_ptr(), torch.get_num_threads())
    return out


def threshold(
    base: Tensor, models: Sequence[Tensor], known: Tensor | None, group: int, bin: int, rank: int
) -> tuple[int, int]:
    """Return the lower 16 bits of a bin's `rank`-th largest entry, and the index before which equal ones are kept."""
    end = ctypes.c_int64()
    codes_of = None if known is None else known.data_ptr()
    where = (codes_of, group, bin, rank, ctypes.byref(end), torch.get_num_threads())
    return _library().threshold(*_source(base, models), *where), end.value


def upper_bytes(key: tuple[int, int], size: int) -> Tensor:
    """Return the upper byte of every entry's lane (see `philox`): (size,) uint8."""
    out = torch.empty(size, dtype=torch.uint8)
    _library().upper_bytes(*key, size, out.data_ptr(), torch.get_num_threads())
    return out


def places(base: Tensor, theta: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Return each entry's position among the largest of its row: (n,) int16 or int32."""
    out = torch.empty(base.numel(), dtype=dtype)
    ends = (ctypes.byref(_array(base)), ctypes.byref(_array(theta)))
    rows, wide = base.numel() // length, dtype == torch.int32
    _library().places(*ends, rows, length, wide, out.data_ptr(), torch.get_num_threads())
    return out


def _merge(
    mode: int,
    base: Tensor | None,
    parents: Sequence[Tensor],
    *,
    sink: Sink | None,
    zero: float | None = None,
    **kinds: Any,
) -> Tensor:
    plan, kept = _plan(mode, base, parents, **kinds)
    into = sink or Sink(torch.empty(parents[0].shape, dtype=torch.float32), torch.float32)
    plan.out, plan.out_type, plan.round_type = into.tensor.data_ptr(), TYPES[into.tensor.dtype], TYPES[into.dtype]
    plan.has_zero, plan.zero = (0, 0.0) if zero is None else (1, zero)
    largest = ctypes.c_float()
    _library().merge(ctypes.byref(plan), ctypes.byref(largest), torch.get_num_threads())
    del kept  # until here
    into.largest = largest.value
    return into.tensor


def _plan(
    mode: int,
    base: Tensor | None,
    parents: Sequence[Tensor],
    *,
    factors: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    changes: Any = None,
    settings: dict[str, Any] | None = None,
) -> tuple[Plan, list[Any]]:
    """Return a plan without its output, and the objects whose memory it names."""
    count = len(parents)
    plan = Plan(mode=mode, parents=count, size=parents[0].numel(), **settings or {})
    kept: list[Any] = [_arrays(parents), changes]
    plan.models = ctypes.addressof(kept[0])
    if base is not None:
        kept.append(_array(base))
        plan.base = ctypes.addressof(kept[-1])
    if changes is not None:
        plan.changes = ctypes.addressof(changes)
    numbers = ctypes.c_float * count
    for name, values in (("factors", factors), ("weights", weights)):
        if values is not None:
            kept.append(numbers(*values))
            setattr(plan, name, ctypes.addressof(kept[-1]))
    return plan, kept


def _sizes(plan: Plan, kept: list[Any], count: int) -> list[float]:
    blocks = np.empty(((plan.size + BLOCK - 1) // BLOCK, count))
    _library().sizes(ctypes.byref(plan), blocks.ctypes.data, torch.get_num_threads())
    return _column_sums(blocks)


def _column_sums(blocks: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> list[float]:
    """Sum exactly, as `kernels.totals` does: NaN if a term is not finite."""
    return [math.fsum(column) if np.isfinite(column).all() else math.nan for column in blocks.T]


def _selection(select: Any) -> dict[str, Any]:
    return {} if select is None else {"select": 1, "selection": Trim(select.below, select.cut, select.end)}


def _described(changes: Sequence[Any] | None) -> "ctypes.Array[Change] | None":
    """Return the descriptions of all changes, where None is the identity; None if one has none."""
    if changes is None:
        return None
    found = (Change * len(changes))()
    for i, change in enumerate(changes):
        if change is None:
            continue
        described = change.compiled() if hasattr(change, "compiled") else None
        if described is None:
            return None
        found[i] = described
    return found


def _source(base: Tensor, models: Sequence[Tensor]) -> tuple[Any, ...]:
    return ctypes.byref(_array(base)), _arrays(models), len(models), base.numel()


def _array(tensor: Tensor) -> Array:
    return Array(tensor.data_ptr(), TYPES[tensor.dtype])


def _arrays(tensors: Sequence[Tensor]) -> "ctypes.Array[Array]":
    return (Array * len(tensors))(*[_array(t) for t in tensors])


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found
