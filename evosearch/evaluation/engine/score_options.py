"""Options of scoring: batch sizes and execution modes. Imports no torch: building a spec's options is cheap."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import device as Device  # noqa: N812 - a class

Mode = Literal["tree", "prefix", "rows"]
MODES: tuple[Mode, ...] = ("tree", "prefix", "rows")  # see `modes.py`

# Default tokens per forward pass. A CPU is not faster with more, and its memory is shared. A small model needs more to
# saturate a GPU; workers measure how many fit (execution/memory.py) and do not use this default.
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ELSEWHERE = 8192
_ACTIVATIONS = {"cpu": 2 << 30}  # bytes
_ACTIVATIONS_ELSEWHERE = 8 << 30


@dataclass(frozen=True)
class Budget:
    """Limits of one run. They do not change a result beyond float rounding."""

    tokens: int  # tokens of one forward pass: with padding for plain rows, without for tries
    cached: int  # keys and values of a batch of rows, in tokens


@dataclass(frozen=True)
class ScoreOptions:
    """Batch sizes and allowed execution modes. They do not change results beyond float rounding."""

    batch_tokens: int | None = None  # tokens of one forward pass; None: the device's default
    batch_reads: int = 2048  # positions whose logits are in memory at once, each vocabulary × 4 bytes
    cached_tokens: int = 32768  # keys and values of a batch of rows, in tokens: rows × length
    generation_rows: int = 512  # maximum number of prompts that are decoded together
    modes: tuple[Mode, ...] = MODES  # allowed execution modes, see `modes.py`
    activation_limit: int | None = None  # bytes that passes keep for their gradients; None: the device's default

    def budget(self, device: "Device") -> Budget:
        """Return the budget of one run on a device."""
        tokens = self.batch_tokens or _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)
        return Budget(tokens, self.cached_tokens)

    def activation_bytes(self, device: "Device") -> int:
        """Return the limit for what forward passes keep for their backward passes, in bytes."""
        return self.activation_limit or _ACTIVATIONS.get(device.type, _ACTIVATIONS_ELSEWHERE)
