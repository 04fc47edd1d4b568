"""Batch size limits of a worker: measured on a GPU unless the spec sets them, and halved when memory runs out."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from evosearch.checkpoints.disk_space import GIB
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.execution import memory


class BatchLimits:
    """Current batch size limits of one worker.

    Args:
        options: The configured limits; with `batch_tokens=None`, a GPU is measured.
        devices: The devices of the worker's model.
        share: This worker's share of a GPU.
    """

    def __init__(self, options: ScoreOptions, devices: Sequence[torch.device], share: float) -> None:
        self.options = options
        self._configured, self._devices, self._share = options, tuple(devices), share
        self._measuring = options.batch_tokens is None and self._devices[0].type == "cuda"
        self._measured_for: weakref.ref[Any] | None = None  # the resident model that was measured
        self._found: memory.Measured | None = None

    def measure(self, resident: Any, length: int) -> None:
        """Set the limits to what fits into GPU memory in addition to a resident model; once for each resident model.

        Args:
            resident: Has the attribute `model`, with a candidate's weights.
            length: Maximum sequence length of the model in tokens.
        """
        known = self._measured_for and self._measured_for()
        if not self._measuring or known is resident:
            return
        found = memory.measure(resident.model, self._devices, self._share, length, self._configured)
        self._found, self._measured_for = found, weakref.ref(resident)
        kept = self._configured.activation_limit or memory.activations(found.memories)
        self.options = replace(
            self._configured, batch_tokens=found.tokens, cached_tokens=found.cached, activation_limit=kept
        )

    def halve(self, caching: bool, backwards: bool = False) -> str | None:
        """Halve the limits after memory ran out.

        Args:
            caching: Whether keys and values of many rows were in memory at that moment.
            backwards: Whether activations were kept for a backward pass.

        Returns:
            The reason to record, or None if the limits are already at their minimum.
        """
        before = (self.options.budget(self._devices[0]).tokens, self.options.cached_tokens)
        after = memory.halved(*before, caching)
        kept = self.options.activation_bytes(self._devices[0])
        less = max(kept // 2, min(kept, memory.LEAST_ACTIVATIONS)) if backwards else kept
        if after is None and less == kept:
            return None
        self._measuring = False  # the measurement was too optimistic
        tokens, cached = after or before
        limit = less if backwards else self.options.activation_limit
        self.options = replace(self.options, batch_tokens=tokens, cached_tokens=cached, activation_limit=limit)
        if less == kept:
            return memory.changed(before, (tokens, cached))
        activations = f"activations of at most {less / GIB:.2g} GiB instead of {kept / GIB:.2g}"
        return f"{memory.changed(before, (tokens, cached))}, {activations}"

    def describe(self) -> dict[str, Any]:
        """Return the limits and the measurement they are based on, see `memory.described`."""
        return memory.described(self.options, self._devices[0], self._found)
