"""`evosearch diff`: write the task vector of a model."""

from dataclasses import dataclass
from pathlib import Path

from evosearch.checkpoints.references import default_cache, split
from evosearch.checkpoints.task_vectors import write_task_vector
from evosearch.checkpoints.tokenizers import tokenizer
from evosearch.errors import CheckpointError
from evosearch.execution.loaders import register_schemes
from evosearch.materialize.inputs import Opener
from evosearch.recipe.files import is_recipe
from evosearch.search.progress import Watcher
from evosearch.setup.lineage import check_pair


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """A task vector, as `evosearch diff --json` prints it.

    Attributes:
        out: The folder.
        base: Reference of the base.
        model: Reference of the model.
        base_sha256: Content hash of the base, which is verified whenever the vector is used.
        model_sha256: Content hash of the model.
        tensors: Number of tensors in the file.
        unchanged: Tensors that the model shares with its base; they are not stored.
        only_in_base: Tensors that the model lacks.
        only_in_model: Tensors that the base lacks; the vector does not have them.
        other_shape: Tensors whose shapes differ; the vector does not have them.
        bytes: Size of the file.
        relative_change: ‖τ‖ / ‖θ₀‖ over all tensors that both have.
        inexact: Number of weights that base + vector does not give back exactly.
        error: Largest difference between base + vector and the model.
    """

    out: str
    base: str
    model: str
    base_sha256: str
    model_sha256: str
    tensors: int
    unchanged: int
    only_in_base: tuple[str, ...]
    only_in_model: tuple[str, ...]
    other_shape: tuple[str, ...]
    bytes: int
    relative_change: float
    inexact: int
    error: float


def diff(
    base: str, model: str, out: Path, watcher: Watcher, allow_pickle: bool = False, allow_unrelated: bool = False
) -> DiffReport:
    """Write the task vector of a model as a folder that recipes take as a model.

    Args:
        base: Reference of the base: one model without adapter.
        model: Reference of the model, or of a recipe.
        out: Folder to write; it must be empty or not exist.
        watcher: Shows progress and notes.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Accept a model that is no fine-tune of the base.

    Raises:
        CheckpointError: A model cannot be opened, the two do not fit together, or `out` cannot be written.
    """
    register_schemes()
    if split(base)[1] is not None or is_recipe(base):
        what, allowed = "a base is one model", "A folder, a hub id or zoo:NAME, without adapter or task vector"
        raise CheckpointError(base, what, allowed, "Merge it first, and name the merged folder")
    opener = Opener(default_cache(), watcher.preparing, allow_pickle)
    start, end = opener.open(base), opener.open(model)
    for text in (*start.notes, *end.notes):
        watcher.note(text)
    if not allow_unrelated:
        check_pair(start, end)
    what = f"writing {out}"
    written = write_task_vector(start, end, out, lambda fraction: watcher.preparing(what, fraction))
    header = written.header
    if header.left_out:
        watcher.note(f"{model}: {len(header.left_out)} tensors are not in both: {', '.join(header.left_out[:4])}")
    tokens = tokenizer.difference(start.tokenizer_folder, end.tokenizer_folder)
    if tokens:
        watcher.note(f"{model}: {tokens}; a task vector is used with the tokenizer of its base")
    return DiffReport(
        out=str(out),
        base=base,
        model=model,
        base_sha256=header.base_sha256,
        model_sha256=header.model_sha256,
        tensors=written.tensors,
        unchanged=len(header.unchanged),
        only_in_base=header.only_in_base,
        only_in_model=header.only_in_model,
        other_shape=header.other_shape,
        bytes=written.bytes,
        relative_change=written.relative,
        inexact=written.inexact,
        error=written.error,
    )
