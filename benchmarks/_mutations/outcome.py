"""Outcome of giving a mutated input to the package."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Outcome of one input.

    Attributes:
        kind: `accepted`, `refused` (one of the package's errors was raised), `unloadable` (a checkpoint was written
            that transformers does not load) or `foreign` (any other exception, a bug).
        said: Message of the error.
        seconds: Wall time; of model folders, processor time.
    """

    kind: str
    said: str
    seconds: float
