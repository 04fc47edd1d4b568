"""GPU memory: measures how many tokens fit into one forward pass, and halves that number when memory runs out.

    peak(n) = fixed + n · token + n² · pair        bytes above the resident model, n tokens in one packed row

The last term is the attention mask of the prefix tree: one entry for each pair of tokens in a row. Forward passes of
512, 1024, 2048, … tokens are run until the parabola through the last three peaks predicts that the next one does not
fit. Memory that does not grow with n (logits, keys and values of continued rows) is counted separately. CPUs are not
measured: larger batches do not make them faster, and their memory is shared with the rest of the machine.
"""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evosearch.checkpoints.disk_space import GIB
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.engine.probe import logits_of, run_packed
from evosearch.evaluation.engine.score_options import ScoreOptions

FLOOR, CEILING = 256, 65536  # tokens of one pass: smaller saves no memory, larger is not faster on any device
SHARE = 0.8  # share of the free memory for scoring; the rest is for merges, longer routes and fragmentation
CACHES = 0.5  # share of that for keys and values of continued rows, at most
GROWING = 1.25  # overhead factor: a cache grows by copying, one layer at a time
CONTEXT = 3 << 28  # bytes (0.75 GiB) of GPU memory that a process uses in addition to torch's allocations
FIRST = 512  # tokens of the first measured pass
LEAST_ACTIVATIONS = 1 << 26  # bytes (64 MiB) kept for a backward pass; less would hardly be saved by smaller passes


@dataclass(frozen=True)
class Growth:
    """Peak memory of a forward pass in bytes: `fixed` + n · `token` + n² · `pair` for n tokens."""

    fixed: float
    token: float
    pair: float

    @classmethod
    def of(cls, sizes: Sequence[int], peaks: Sequence[float]) -> "Growth":
        """Fit the parabola through three peaks, at n, 2n and 4n tokens; negative coefficients are clipped to 0."""
        n, (first, second, third) = sizes[0], peaks
        assert list(sizes) == [n, 2 * n, 4 * n], "sizes must double"
        one, two = max(second - first, 0) / n, max(third - second, 0) / (2 * n)  # token + 3n·pair, token + 6n·pair
        pair = max((two - one) / (3 * n), 0.0)
        token = max(one - 3 * n * pair, 0.0) if pair else max(one, two)
        return cls(max(first - n * token - n * n * pair, 0.0), token, pair)

    def at(self, tokens: int) -> float:
        """Return the predicted peak of a pass in bytes."""
        return self.fixed + tokens * self.token + tokens**2 * self.pair


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device of a worker, and of the parts of scoring that do not grow with the pass, in bytes."""

    device: str
    total: int
    available: int  # what this worker may still allocate, with the resident model loaded
    cached: float  # keys and values of one token
    logits: int  # logits of the positions that are read at once


@dataclass(frozen=True)
class Measured:
    """Measured memory of a worker's devices, and the resulting limits."""

    memories: tuple[DeviceMemory, ...]
    growths: tuple[Growth, ...]  # one per device; empty if not even the first passes fit
    tokens: int  # tokens of one forward pass
    cached: int  # tokens whose keys and values are cached


def cacheable(memories: Sequence[DeviceMemory], wanted: int) -> int:
    """Return the number of tokens whose keys and values fit into their share: `wanted`, or a smaller power of two."""
    for memory in memories:
        fits = CACHES * SHARE * memory.available / (GROWING * memory.cached) if memory.cached else wanted
        if fits < wanted:
            wanted = max(power_of_two(fits), FLOOR)
    return wanted


def activations(memories: Sequence[DeviceMemory]) -> int:
    """Return the bytes that a pass may keep for its backward pass; gradients of weights and logits need the rest."""
    return int(min(CACHES * SHARE * memory.available for memory in memories))


def pass_budget(memory: DeviceMemory, cached: int) -> float:
    """Return the bytes that a forward pass may use, after logits and the keys and values of `cached` tokens."""
    return SHARE * memory.available - memory.logits - GROWING * cached * memory.cached


def largest_pass(peaks: Callable[[int], Sequence[float]], budgets: Sequence[float]) -> tuple[int, tuple[Growth, ...]]:
    """Find the largest forward pass that fits: a power of two of tokens, from FLOOR to CEILING.

    With powers of two, workers whose free memory differs slightly still lay out items in the same batches.

    Args:
        peaks: Tokens of a pass → its measured peak on each device in bytes; inf if it did not fit.
        budgets: Bytes that a pass may use on each device.

    Returns:
        The number of tokens, and the fitted growth of memory on each device.
    """
    sizes, taken, growths = list[int](), list[Sequence[float]](), tuple[Growth, ...]()
    size = FIRST
    while size <= CEILING and all(each.at(size) <= own for each, own in zip(growths, budgets, strict=bool(growths))):
        found = peaks(size)
        if any(peak > own for peak, own in zip(found, budgets, strict=True)):
            break
        sizes, taken = [*sizes, size][-3:], [*taken, found][-3:]
        if len(sizes) == 3:
            growths = tuple(Growth.of(sizes, peak) for peak in zip(*taken, strict=True))
        size *= 2
    return max(size // 2, FLOOR), growths


def halved(tokens: int, cached: int, caching: bool) -> tuple[int, int] | None:
    """Return half of (tokens, cached tokens), or None if both are at the minimum.

    Args:
        caching: Whether keys and values of many rows were in memory when it ran out; otherwise `cached` is unchanged.
    """
    less = max(tokens // 2, min(tokens, FLOOR))
    kept = max(cached // 2, min(cached, FLOOR)) if caching else cached
    return None if (less, kept) == (tokens, cached) else (less, kept)


def changed(before: tuple[int, int], after: tuple[int, int]) -> str:
    """Return the recorded reason for a change of (tokens, cached tokens)."""
    tokens = f"out of memory at {before[0]} tokens per batch; {after[0]} from now on"
    return tokens if before[1] == after[1] else f"{tokens}, and {after[1]} cached tokens instead of {before[1]}"


def claim(device: torch.device, share: float) -> None:
    """Limit this process to its share of a GPU, so that it cannot starve others on the same GPU."""
    if device.type == "cuda" and share < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(allowed(total, share) / total, device)


def allowed(total: int, share: float) -> float:
    """Return the bytes of a GPU's memory that torch may allocate for a worker with this share."""
    return max(share * total - CONTEXT, share * total / 2) if share < 1 else float(total)


def release(devices: Sequence[torch.device]) -> None:
    """Return unused memory to the devices, where other processes can use it too."""
    gc.collect()
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.empty_cache()


def measure(model: Any, devices: Sequence[torch.device], share: float, longest: int, options: ScoreOptions) -> Measured:
    """Measure the memory that scoring needs on a worker's GPUs, and derive its limits.

    Args:
        model: The resident model, with a candidate's weights.
        devices: CUDA devices of the model.
        share: This worker's share of a GPU.
        longest: Maximum sequence length of the model in tokens.
        options: The configured limits; `cached_tokens` is an upper bound.
    """
    kv_bytes: dict[torch.device, int] = {}

    def run(tokens: int) -> None:
        kv_bytes.update(run_packed(model, tokens, longest))

    _peaks(devices, lambda: run(FLOOR))  # warm-up: libraries allocate their workspaces
    logits = _peaks(devices, lambda: logits_of(model, options.batch_reads))
    release(devices)
    memories = tuple(
        DeviceMemory(
            str(device), *_left(device, share), kv_bytes.get(device, 0) / FLOOR, 0 if math.isinf(taken) else int(taken)
        )
        for device, taken in zip(devices, logits, strict=True)
    )
    cached = cacheable(memories, options.cached_tokens)
    budgets = [pass_budget(memory, cached) for memory in memories]
    tokens, growths = largest_pass(lambda size: _peaks(devices, lambda: run(size)), budgets)
    release(devices)
    return Measured(memories, growths, tokens, cached)


def _peaks(devices: Sequence[torch.device], run: Callable[[], None]) -> list[float]:
    """Return the peak allocation of each GPU during `run` in bytes above the start; inf if memory ran out."""
    before = []
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
        before.append(torch.cuda.memory_allocated(device))
    try:
        run()
    except Exception as error:
        if out_of_memory(error):
            return [math.inf] * len(devices)
        raise
    return [float(torch.cuda.max_memory_allocated(device) - had) for device, had in zip(devices, before, strict=True)]


def _left(device: torch.device, share: float) -> tuple[int, int]:
    """Return (total, available) bytes of a GPU; available is free or unused in torch's pool, within the share."""
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return total, int(max(min(free + reserved - allocated, allowed(total, share) - allocated), 0))


def described(options: ScoreOptions, device: torch.device, found: Measured | None) -> dict[str, Any]:
    """Return a worker's limits and measurement for `check --json`, in GiB per GPU and KiB per token."""
    devices = [
        {
            "device": memory.device,
            "total_gib": memory.total / GIB,
            "available_gib": memory.available / GIB,
            "logits_gib": memory.logits / GIB,
            "cached_kib_per_token": memory.cached / 1024,
        }
        for memory in (found.memories if found else ())
    ]
    for entry, growth in zip(devices, found.growths if found else (), strict=False):
        entry |= {"fixed_gib": growth.fixed / GIB, "kib_per_token": growth.token / 1024, "bytes_per_pair": growth.pair}
    return {
        "device": str(device),
        "batch_tokens": options.budget(device).tokens,
        "cached_tokens": options.cached_tokens,
        "measured": found is not None,
        "devices": devices,
    }


def cards() -> list[dict[str, Any]]:
    """Return name, total and free GiB of each GPU that this process sees."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append({"device": f"cuda:{index}", "name": name, "total_gib": total / GIB, "free_gib": free / GIB})
    return found


def power_of_two(value: float) -> int:
    """Return the largest power of two not above a value; 0 for values below 1."""
    return 0 if value < 1 else 1 << (int(value).bit_length() - 1)
