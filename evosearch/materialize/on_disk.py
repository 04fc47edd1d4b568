"""Export of a recipe as a checkpoint, one tensor at a time, so that memory does not grow with the models."""

import resource
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.writer import MAX_SHARD_BYTES, CheckpointWriter
from evosearch.errors import CandidateError
from evosearch.materialize.apply import merge, not_finite, operations
from evosearch.materialize.fit import check_fit
from evosearch.materialize.layout import output
from evosearch.materialize.loadable import check_files, check_settings
from evosearch.materialize.plan import output_dtype
from evosearch.recipe.schema import Recipe

PAGE = 4096  # bytes


@dataclass(frozen=True)
class CheckpointReport:
    """Result of a checkpoint export and its cost.

    Attributes:
        out: The folder.
        tensors: Number of tensors.
        bytes: Size of the weights.
        seconds: Durations: read (pages from disk), merge, write (waiting for hashing and files),
            total.
        peak_rss_gib: Peak resident memory of the process so far, including mapped pages of the inputs.
        weights_sha256: The result's `content_sha256`.
    """

    out: Path
    tensors: int
    bytes: int
    seconds: Mapping[str, float]
    peak_rss_gib: float
    weights_sha256: str


@torch.no_grad()
def write_checkpoint(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    out: Path,
    donor: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> CheckpointReport:
    """Write a recipe's model to a folder, which appears complete or not at all.

    Args:
        recipe: The recipe.
        checkpoints: Reference → checkpoint, for every model that the recipe names.
        out: The folder to create.
        donor: Reference of the model that config, tokenizer and chat template come from (`plan.donor_of`).
        max_shard_bytes: Maximum size of a weights file.

    Raises:
        CheckpointError: The checkpoints are incompatible, transformers could not load the result, or `out` is not empty
            or cannot be written.
        RecipeError: The recipe does not fit its method.
        CandidateError: The merge is undefined for the parameter values, or a merged tensor is not finite.
    """
    clock, model = _Clock(), checkpoints[donor]
    result = output(recipe, checkpoints)
    check_fit(recipe, checkpoints, result)
    shapes = {reference: checkpoint.shape for reference, checkpoint in checkpoints.items()}
    ops = operations(
        recipe,
        shapes,
        result.shape,
        lambda source: checkpoints[source.reference].load(source.tensor),
        lambda reference: checkpoints[reference].content_sha256(),
        checkpoints=checkpoints,
    )
    dtype = output_dtype(recipe)
    layout = [(op.tensor, result.sizes[op.tensor]) for op in ops]
    verify = partial(check_files, layout=layout, dtype=dtype)
    with (
        CheckpointWriter(
            out, layout, dtype, model.folder, result.config, max_shard_bytes, model.tokenizer_folder, verify
        ) as writer,
        ThreadPoolExecutor(1) as pool,
    ):
        writing: Future[None] | None = None  # one tensor is hashed and written while the next one is merged
        check_settings(writer.folder, model, layout, dtype)  # before an hour of merging
        for op in ops:
            inputs = {source: checkpoints[source.reference].load(source.tensor) for source in op.sources}
            for tensor in inputs.values():
                _touch(tensor)
            clock.lap("read")
            merged = merge(op, inputs.__getitem__, dtype)
            if not merged.extremes().isfinite().all():
                raise CandidateError("materialize", not_finite(op.tensor, recipe.output_dtype))
            clock.lap("merge")
            if writing is not None:
                writing.result()
            writing = pool.submit(writer.add, op.tensor, merged.tensor)
            clock.lap("write")
        if writing is not None:
            writing.result()
    clock.lap("write")  # companions, index, rename
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    return CheckpointReport(out, len(ops), writer.bytes_written, clock.seconds(), peak_gib, writer.weights_sha256)


def _touch(tensor: torch.Tensor) -> None:
    """Load a mapped tensor's pages, so that reading is not timed as merging."""
    tensor.reshape(-1).view(torch.uint8)[::PAGE].sum()


class _Clock:
    """Wall time in seconds, summed by activity."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._laps = {"read": 0.0, "merge": 0.0, "write": 0.0}

    def lap(self, into: str) -> None:
        now = time.perf_counter()
        self._laps[into] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return self._laps | {"total": time.perf_counter() - self._started}
