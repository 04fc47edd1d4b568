"""Counter-based random masks: Philox4x64-10 (Salmon et al. 2011), keyed by seed, model content and tensor name.

The definition is frozen, because exported recipes reproduce their weights only under it:

1. The key is the first 128 bits of sha256 over three lines of UTF-8 text, separated by line feeds: the recipe's seed in
   decimal, the model's content_sha256 in lower-case hexadecimal, the tensor's name. The bits are read as two
   little-endian 64-bit words k₀, k₁.
2. Block b is the output of Philox4x64 with 10 rounds, key (k₀, k₁) and counter (b, 0, 0, 0): four 64-bit words.
3. A block has eight 32-bit lanes: for each word in order, the lower half and then the upper half.
4. Element i of a tensor, in row-major order, has lane i mod 8 of block ⌊i / 8⌋.
5. An element is kept at density d exactly when its lane is less than ⌊d · 2³² + ½⌋. At density 1 every element is kept.
   Elements of one tensor may have different densities.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

LANES = 8  # 32-bit lanes per block
ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # added to the key after each round
MASK = (1 << 64) - 1
LOW = (1 << 32) - 1

Key = tuple[int, int]


def key_of(seed: int, content_sha256: str, tensor: str) -> Key:
    """Return the key of one tensor of one model under a recipe's seed."""
    digest = hashlib.sha256(f"{seed}\n{content_sha256}\n{tensor}".encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def lanes(key: Key, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the lanes of `count` elements from index `start` on: (count,) int64 in [0, 2³²)."""
    first, last = start // LANES, (start + count + LANES - 1) // LANES
    if torch.device(device).type == "cpu":
        found = torch.from_numpy(_numpy_lanes(key, first, last - first).astype(np.int64))
    else:
        found = torch_lanes(key, first, last - first, device)
    skip = start - first * LANES
    return found[skip : skip + count]


def kept(key: Key, density: float, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the mask of `count` elements from index `start` on: (count,) bool, true if kept."""
    limit = limit_of(density)
    if limit > LOW:
        return torch.ones(count, dtype=torch.bool, device=device)
    if torch.device(device).type != "cpu":
        return lanes(key, start, count, device) < limit
    first, last = start // LANES, (start + count + LANES - 1) // LANES
    skip = start - first * LANES
    return torch.from_numpy(_numpy_lanes(key, first, last - first)[skip : skip + count] < np.uint32(limit))


def limit_of(density: float) -> int:
    """Return the limit below which a lane keeps its element."""
    return int(density * 2**32 + 0.5)


def _numpy_lanes(key: Key, block: int, blocks: int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    """Return lanes from numpy's Philox, the same function; it increments the counter before its first block."""
    before = (block - 1) % (1 << 256)
    stream = np.random.Philox(counter=before, key=key[0] | key[1] << 64)
    return stream.random_raw(4 * blocks).astype("<u8", copy=False).view("<u4")


def torch_lanes(key: Key, block: int, blocks: int, device: torch.device | str) -> Tensor:
    """Compute the lanes of complete blocks in torch, on any device: (8 · blocks,) int64."""
    counter = torch.arange(block, block + blocks, dtype=torch.int64, device=device)
    zero = torch.zeros_like(counter)
    x = [counter, zero, zero, zero]  # 64-bit words as torch's signed integers
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(x[0], MULTIPLIERS[0])
        high1, low1 = _multiply(x[2], MULTIPLIERS[1])
        x = [high1 ^ x[1] ^ _signed(k0), low1, high0 ^ x[3] ^ _signed(k1), low0]
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack([half for word in x for half in (word & LOW, _upper(word))], dim=1).view(-1)


def _multiply(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the upper and lower 64 bits of a 128-bit product, from 32-bit halves; additions wrap around."""
    x_low, x_high, f_low, f_high = x & LOW, _upper(x), factor & LOW, factor >> 32
    low_low, low_high, high_low = x_low * f_low, x_low * f_high, x_high * f_low
    middle = _upper(low_low) + (low_high & LOW) + (high_low & LOW)
    upper = x_high * f_high + _upper(low_high) + _upper(high_low) + _upper(middle)
    return upper, x * _signed(factor)


def _upper(x: Tensor) -> Tensor:
    """Return the upper half of a 64-bit word as an unsigned number."""
    return (x >> 32) & LOW


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
