"""The preflight: can these checkpoints be merged tensor by tensor?"""

from collections.abc import Sequence

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.tokenizers import tokenizer
from evosearch.errors import CheckpointError, InputError, in_one
from evosearch.recipe.shapes import Place


def check_compatible(
    checkpoints: Sequence[Checkpoint], where: str = "recipe", same_depth: bool = True, by_layer: bool = True
) -> None:
    """Check that all checkpoints have the same layout as the first, commonest difference first.

    Args:
        same_depth: whether they must have as many layers; a recipe of slices takes layers of models of any depth.
        by_layer: whether their layers must agree one by one; a route runs each by itself, of whatever kind it is.

    Raises:
        CheckpointError: two differ in depth, architecture, tied embeddings, vocabulary size, tensor shapes or tokens;
            the message names both.
        Problems: several differ from the first.
    """
    problems: list[InputError] = []
    for other in checkpoints[1:]:
        found = _difference(checkpoints[0], other, same_depth, by_layer)
        if found:
            pair = f"'{checkpoints[0].reference}' and '{other.reference}'"
            if by_layer:
                what, allowed = f"{pair} cannot be merged: {found}", "Models fine-tuned from one base"
            else:
                what, allowed = f"{pair} cannot be in one route: {found}", "Models of one family, width and vocabulary"
            problems.append(CheckpointError(where, what, allowed))
    if problems:
        raise in_one(where.partition(": ")[0], problems)


def _difference(one: Checkpoint, other: Checkpoint, same_depth: bool, by_layer: bool) -> str | None:
    """How the second differs from the first, in words; None where they fit."""
    if same_depth and one.shape.num_layers != other.shape.num_layers:
        return f"{one.shape.num_layers} and {other.shape.num_layers} layers"
    if one.shape.architecture != other.shape.architecture:
        return f"{one.shape.architecture} and {other.shape.architecture}"
    if one.shape.tied_embeddings != other.shape.tied_embeddings:
        return "one ties its output head to its embeddings, the other does not"
    return _shape_difference(one, other, by_layer) or tokenizer.difference(one.tokenizer_folder, other.tokenizer_folder)


def _shape_difference(one: Checkpoint, other: Checkpoint, by_layer: bool) -> str | None:
    for name in one.shape.names(Place.EMBEDDINGS):
        rows = [checkpoint.tensors[name].shape[:1] for checkpoint in (one, other) if name in checkpoint.tensors]
        if len(rows) == 2 and rows[0] != rows[1]:
            return f"vocabularies of {rows[0][0]} and {rows[1][0]} tokens"
    if not by_layer:
        return _size_difference(one, other)
    depth = min(one.shape.num_layers, other.shape.num_layers)
    lacking = sorted(name for name in one.tensors.keys() ^ other.tensors.keys() if not _beyond(name, depth, one, other))
    if lacking:
        return f"only one of them has the tensor '{lacking[0]}'"
    for name, info in ((name, info) for name, info in one.tensors.items() if name in other.tensors):
        if info.shape != other.tensors[name].shape:
            return f"'{name}' is {_by(info.shape)} in one and {_by(other.tensors[name].shape)} in the other"
    return None


def _size_difference(one: Checkpoint, other: Checkpoint) -> str | None:
    """What has another size in some layer of the one than in some layer of the other, under the same name there."""
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for checkpoint in (one, other):
        for name, info in checkpoint.tensors.items():
            known, size = sizes.setdefault(checkpoint.shape.at_layer(name, 0), (name, info.shape))
            if info.shape != size:
                named = "" if name == known else f"'{name}' "
                return f"'{known}' is {_by(size)} in one and {named}{_by(info.shape)} in the other"
    return None


def _beyond(name: str, depth: int, *checkpoints: Checkpoint) -> bool:
    """Whether a tensor belongs to a layer that the shallower model does not have."""
    found = [checkpoint.shape.by_name[name] for checkpoint in checkpoints if name in checkpoint.shape.by_name]
    return any(tensor.layer is not None and tensor.layer >= depth for tensor in found)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)
