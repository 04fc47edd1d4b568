"""Compatibility of checkpoints: tensor by tensor for merges, by size for routes."""

from collections.abc import Sequence

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.tokenizers import tokenizer
from evosearch.errors import CheckpointError, InputError, in_one
from evosearch.recipe.shapes import Place


def check_compatible(
    checkpoints: Sequence[Checkpoint], where: str = "recipe", same_depth: bool = True, by_layer: bool = True
) -> None:
    """Check that all checkpoints have the same tensors as the first. The most frequent mismatches are checked first.

    Args:
        checkpoints: The checkpoints.
        where: Key of the models, for errors.
        same_depth: Require the same number of layers. Slices may take layers from models of different depths.
        by_layer: Require that layers match one by one. A route runs each layer on its own, of whatever kind it is.

    Raises:
        CheckpointError: One checkpoint differs from the first in depth, architecture, tied embeddings, vocabulary size,
            tensor shapes or tokens. The message names both.
        Problems: Several checkpoints differ from the first.
    """
    problems: list[InputError] = []
    for other in checkpoints[1:]:
        found = _difference(checkpoints[0], other, same_depth, by_layer)
        if found:
            pair = f"'{checkpoints[0].reference}' and '{other.reference}'"
            if by_layer:
                what, allowed = f"{pair} cannot be merged: {found}", "Use models fine-tuned from one base"
            else:
                what = f"{pair} cannot be in one route: {found}"
                allowed = "Use models of one family, width and vocabulary"
            problems.append(CheckpointError(where, what, allowed))
    if problems:
        raise in_one(where.partition(": ")[0], problems)


def _difference(one: Checkpoint, other: Checkpoint, same_depth: bool, by_layer: bool) -> str | None:
    """Describe how the second checkpoint differs from the first; None if they match."""
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
    """Describe a layer tensor whose size is not the same in all layers of both checkpoints; None without one."""
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for checkpoint in (one, other):
        for name, info in checkpoint.tensors.items():
            known, size = sizes.setdefault(checkpoint.shape.at_layer(name, 0), (name, info.shape))
            if info.shape != size:
                named = "" if name == known else f"'{name}' "
                return f"'{known}' is {_by(size)} in one and {named}{_by(info.shape)} in the other"
    return None


def _beyond(name: str, depth: int, *checkpoints: Checkpoint) -> bool:
    """Return whether a tensor belongs to a layer that the shallower model lacks."""
    found = [checkpoint.shape.by_name[name] for checkpoint in checkpoints if name in checkpoint.shape.by_name]
    return any(tensor.layer is not None and tensor.layer >= depth for tensor in found)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)
