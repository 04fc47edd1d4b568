"""How much a worker runs at once: what its device's memory holds, measured; and less, once that was too much.

    peak(n) = fixed + n · token + n² · pair        bytes above the resident model, n tokens in one packed row

The last term is the tree's mask: every token of a row has an entry for every other. Runs of 512, 1024, 2048 and more
tokens are made, twice as many each time, until the last three say that the next would not fit. What is held beside a
run (logits, keys and values of rows that are continued) is counted apart, since it does not grow with n. A CPU is not
measured: more tokens at once do not make it faster, and its memory is everybody's.
"""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evosearch.checkpoints.disk_space import GIB
from evosearch.evaluation.engine.loglikelihood import ScoreOptions
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.engine.probe import logits_of, run_packed

FLOOR, CEILING = 256, 65536  # tokens of one run: below, another size does not help; above, no device gets faster
SHARE = 0.8  # of the memory that is left, for scoring: the rest is for merges, longer paths, and fragments
CACHES = 0.5  # of that share, at most, for keys and values of rows that are continued
GROWING = 1.25  # a cache grows by copying, one layer at a time
CONTEXT = 3 << 28  # bytes (0.75 GiB) that a process takes of a card beside what torch allocates
FIRST = 512  # tokens of the first run that is measured


@dataclass(frozen=True)
class Growth:
    """Bytes that a run takes: `fixed` + n · `token` + n² · `pair` for n tokens."""

    fixed: float
    token: float
    pair: float

    @classmethod
    def of(cls, sizes: Sequence[int], peaks: Sequence[float]) -> "Growth":
        """The parabola through three peaks, at n, 2n and 4n tokens; what rounding makes negative is 0."""
        n, (first, second, third) = sizes[0], peaks
        assert list(sizes) == [n, 2 * n, 4 * n], "sizes must double"
        one, two = max(second - first, 0) / n, max(third - second, 0) / (2 * n)  # token + 3n·pair, token + 6n·pair
        pair = max((two - one) / (3 * n), 0.0)
        token = max(one - 3 * n * pair, 0.0) if pair else max(one, two)
        return cls(max(first - n * token - n * n * pair, 0.0), token, pair)

    def at(self, tokens: int) -> float:
        """Bytes that a run of so many tokens takes."""
        return self.fixed + tokens * self.token + tokens**2 * self.pair


@dataclass(frozen=True)
class Reading:
    """One device of a worker: what it has left for scoring, and what scoring takes of it. In bytes."""

    device: str
    total: int
    available: int  # that this worker may still take, the resident model being there
    cached: float  # keys and values of one token
    logits: int  # of as many positions as are read at once


@dataclass(frozen=True)
class Measured:
    """What was found out about a worker's devices, and what follows: tokens of a run, tokens cached."""

    readings: tuple[Reading, ...]
    growths: tuple[Growth, ...]  # of each device; none where even the first runs did not fit
    tokens: int
    cached: int


def cacheable(readings: Sequence[Reading], asked: int) -> int:
    """How many of the asked tokens' keys and values the devices may hold: all, or a power of two."""
    for reading in readings:
        held = CACHES * SHARE * reading.available / (GROWING * reading.cached) if reading.cached else asked
        if held < asked:
            asked = max(power_of_two(held), FLOOR)
    return asked


def room(reading: Reading, cached: int) -> float:
    """Bytes that a run may take of a device, beside logits and the keys and values of so many tokens."""
    return SHARE * reading.available - reading.logits - GROWING * cached * reading.cached


def climb(peaks: Callable[[int], Sequence[float]], rooms: Sequence[float]) -> tuple[int, tuple[Growth, ...]]:
    """The most tokens of a run that fit, a power of two from FLOOR to CEILING, and how what they take grows.

    Powers of two, so that a worker that finds a little less memory lays its items out as another one does.

    Args:
        peaks: tokens of a run → bytes that it took of each device, inf where it did not fit at all.
        rooms: bytes that it may take.
    """
    sizes, taken, growths = list[int](), list[Sequence[float]](), tuple[Growth, ...]()
    size = FIRST
    while size <= CEILING and all(each.at(size) <= own for each, own in zip(growths, rooms, strict=bool(growths))):
        found = peaks(size)
        if any(peak > own for peak, own in zip(found, rooms, strict=True)):
            break
        sizes, taken = [*sizes, size][-3:], [*taken, found][-3:]
        if len(sizes) == 3:
            growths = tuple(Growth.of(sizes, peak) for peak in zip(*taken, strict=True))
        size *= 2
    return max(size // 2, FLOOR), growths


def halved(tokens: int, cached: int, caching: bool) -> tuple[int, int] | None:
    """Half of what was too much, (tokens, cached tokens); None where nothing is left to halve.

    Args:
        caching: whether keys and values of many rows were held when memory ran out.
    """
    less = max(tokens // 2, min(tokens, FLOOR))
    kept = max(cached // 2, min(cached, FLOOR)) if caching else cached
    return None if (less, kept) == (tokens, cached) else (less, kept)


def changed(before: tuple[int, int], after: tuple[int, int]) -> str:
    """The reason to record for a change of (tokens, cached tokens)."""
    if before[1] == after[1]:
        return f"out of memory at {before[0]} tokens a batch; {after[0]} from now on"
    return (
        f"out of memory at {before[0]} tokens a batch; {after[0]} from now on, and {after[1]} in place of {before[1]} "
        "cached"
    )


def claim(device: torch.device, share: float) -> None:
    """Keep this process within its share of a card: one that took more would starve those beside it."""
    if device.type == "cuda" and share < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(allowed(total, share) / total, device)


def allowed(total: int, share: float) -> float:
    """Bytes that torch may allocate of a card of so many, for a worker that has a share of it."""
    return max(share * total - CONTEXT, share * total / 2) if share < 1 else float(total)


def release(devices: Sequence[torch.device]) -> None:
    """Give back what nothing refers to any more, to the device and to those who share it."""
    gc.collect()
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.empty_cache()


def measure(model: Any, devices: Sequence[torch.device], share: float, longest: int, options: ScoreOptions) -> Measured:
    """What the cards of a worker have left beside a model, what runs of it take, and how much may run at once.

    Args:
        model: with a candidate's weights.
        devices: CUDA devices that the model is on.
        share: of a card, for this worker.
        longest: tokens of the longest sequence that the model takes.
    """
    held: dict[torch.device, int] = {}

    def run(tokens: int) -> None:
        held.update(run_packed(model, tokens, longest))

    _peaks(devices, lambda: run(FLOOR))  # libraries take their workspaces
    logits = _peaks(devices, lambda: logits_of(model, options.batch_reads))
    release(devices)
    readings = tuple(
        Reading(str(device), *_left(device, share), held.get(device, 0) / FLOOR, 0 if math.isinf(taken) else int(taken))
        for device, taken in zip(devices, logits, strict=True)
    )
    cached = cacheable(readings, options.cached_tokens)
    rooms = [room(reading, cached) for reading in readings]
    tokens, growths = climb(lambda size: _peaks(devices, lambda: run(size)), rooms)
    release(devices)
    return Measured(readings, growths, tokens, cached)


def _peaks(devices: Sequence[torch.device], run: Callable[[], None]) -> list[float]:
    """Bytes that each card had allocated at most while something ran, above what it had before; inf: it did not fit."""
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
    """(total, available) bytes of a card: what is free or unused in torch's own pool, within this worker's share."""
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return total, int(max(min(free + reserved - allocated, allowed(total, share) - allocated), 0))


def described(options: ScoreOptions, device: torch.device, found: Measured | None) -> dict[str, Any]:
    """What a worker runs at once, and why, as `check --json` has it: GiB of its cards, KiB of one token."""
    devices = [
        {
            "device": reading.device,
            "total_gib": reading.total / GIB,
            "available_gib": reading.available / GIB,
            "logits_gib": reading.logits / GIB,
            "cached_kib_per_token": reading.cached / 1024,
        }
        for reading in (found.readings if found else ())
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
    """The GPUs that this process sees: name, and GiB in all and free. Empty where there is none."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append({"device": f"cuda:{index}", "name": name, "total_gib": total / GIB, "free_gib": free / GIB})
    return found


def power_of_two(value: float) -> int:
    """The largest power of two that is not above a value; 0 below one."""
    return 0 if value < 1 else 1 << (int(value).bit_length() - 1)
