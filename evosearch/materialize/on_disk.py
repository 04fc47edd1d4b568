"""Export of a recipe as a checkpoint, one tensor at a time, so that memory does not grow with the models."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from evosearch.checkpoints.digest import combine, tensor_line
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.writer import MAX_SHARD_BYTES, CheckpointWriter
from evosearch.errors import CandidateError
from evosearch.materialize.apply import merge, not_finite, operations
from evosearch.materialize.fit import check_fit
from evosearch.materialize.layout import Output, output
from evosearch.materialize.loadable import check_files, check_settings
from evosearch.materialize.plan import TensorOp, output_dtype
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
        digests: Digests of the weights.
    """

    out: Path
    tensors: int
    bytes: int
    seconds: Mapping[str, float]
    peak_rss_gib: float
    digests: "WeightDigests"

    @property
    def weights_sha256(self) -> str:
        """The result's `content_sha256`."""
        return self.digests.weights_sha256


@dataclass(frozen=True)
class WeightDigests:
    """Digests of a merge's weights: their `content_sha256`, and tensor → sha256 of its bytes."""

    weights_sha256: str
    tensors: Mapping[str, str]


@torch.no_grad()
def digest_weights(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> WeightDigests:
    """Merge a recipe tensor by tensor, and return digests of the weights that `write_checkpoint` would write.

    Raises:
        CheckpointError, RecipeError, CandidateError: See `write_checkpoint`.
    """
    result = output(recipe, checkpoints)
    check_fit(recipe, checkpoints, result)
    clock, ops = _Clock(), _operations(recipe, checkpoints, result)
    lines = [tensor_line(name, tensor) for name, tensor in _merged(recipe, ops, checkpoints, clock)]
    return WeightDigests(combine(lines), {line[0]: line[3] for line in lines})


@torch.no_grad()
def write_checkpoint(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    out: Path,
    donor: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    accept: Callable[[WeightDigests], object] | None = None,
) -> CheckpointReport:
    """Write a recipe's model to a folder, which appears complete or not at all.

    Args:
        recipe: The recipe.
        checkpoints: Reference → checkpoint, for every model that the recipe names.
        out: The folder to create.
        donor: Reference of the model that config, tokenizer and chat template come from (`plan.donor_of`).
        max_shard_bytes: Maximum size of a weights file.
        accept: Called with the digests of the weights before the folder appears; an exception removes it.

    Raises:
        CheckpointError: The checkpoints are incompatible, transformers could not load the result, or `out` is not empty
            or cannot be written.
        RecipeError: The recipe does not fit its method.
        CandidateError: The merge is undefined for the parameter values, or a merged tensor is not finite.
    """
    clock, model = _Clock(), checkpoints[donor]
    result = output(recipe, checkpoints)
    check_fit(recipe, checkpoints, result)
    ops, dtype = _operations(recipe, checkpoints, result), output_dtype(recipe)
    layout = [(op.tensor, result.sizes[op.tensor]) for op in ops]
    companions = (model.folder, result.config, max_shard_bytes, model.tokenizer_folder)

    def verify(folder: Path) -> None:
        check_files(folder, layout=layout, dtype=dtype)
        if accept is not None:
            accept(_digests(writer))

    with CheckpointWriter(out, layout, dtype, *companions, verify) as writer, ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None  # one tensor is hashed and written while the next one is merged
        check_settings(writer.folder, model, layout, dtype)  # before an hour of merging
        for name, tensor in _merged(recipe, ops, checkpoints, clock):
            if writing is not None:
                writing.result()
            writing = pool.submit(writer.add, name, tensor)
            clock.lap("write")
        if writing is not None:
            writing.result()
    clock.lap("write")  # companions, index, rename
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    return CheckpointReport(out, len(ops), writer.bytes_written, clock.seconds(), peak_gib, _digests(writer))


def _digests(writer: CheckpointWriter) -> WeightDigests:
    return WeightDigests(writer.weights_sha256, writer.tensor_sha256)


def _operations(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], result: Output) -> tuple[TensorOp, ...]:
    return operations(
        recipe,
        {reference: checkpoint.shape for reference, checkpoint in checkpoints.items()},
        result.shape,
        lambda source: checkpoints[source.reference].load(source.tensor),
        lambda reference: checkpoints[reference].content_sha256(),
        checkpoints=checkpoints,
    )


def _merged(
    recipe: Recipe, ops: Sequence[TensorOp], checkpoints: Mapping[str, Checkpoint], clock: "_Clock"
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a merge, in the output's type.

    Raises:
        CandidateError: The merge is undefined for the parameter values, or a tensor is not finite.
    """
    dtype = output_dtype(recipe)
    for op in ops:
        inputs = {source: checkpoints[source.reference].load(source.tensor) for source in op.sources}
        for tensor in inputs.values():
            _touch(tensor)
        clock.lap("read")
        merged = merge(op, inputs.__getitem__, dtype)
        if not merged.extremes().isfinite().all():
            raise CandidateError("materialize", not_finite(op.tensor, recipe.output_dtype))
        clock.lap("merge")
        yield op.tensor, merged.tensor


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
