"""Lineage check of a recipe's models: whether those that are merged with each other share a base.

It reads a few rows of a bounded number of tensors, so that its cost does not grow with the models: at most
`MOST_TENSORS` blocks of `MOST_ELEMENTS` elements from each model, 13 MB in float32.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

import torch

from evosearch.analysis.inner_products import Gram, change, gram
from evosearch.analysis.lineage import LEAST_CHANGE, MOST_COSINE, Group, ModelLineage, lineage
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.rows import rows
from evosearch.documents import join
from evosearch.errors import CheckpointError, InputError, in_one
from evosearch.merging.registry import specs
from evosearch.recipe.blocks import Block, blocks
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import Place, TensorSpec
from evosearch.setup.models import Models

MOST_TENSORS = 48
MOST_ELEMENTS = 1 << 16  # of one tensor; a cosine of unrelated rows is then within ±0.02 of 0
MOST_COMPUTED = 1 << 24  # elements of a tensor that must be computed in full for its rows
SHARES: Mapping[Group, int] = {"matrices": 36, "embeddings": 4, "norms": 8}  # of MOST_TENSORS
FLAG = "--allow-unrelated"


@dataclass(frozen=True)
class Relation:
    """Models that are merged with each other.

    Attributes:
        base: The base, or else the first model, which the others are compared with.
        models: The others, with the key of each in its recipe.
        is_base: Whether `base` is the base of a method on task vectors.
    """

    base: str
    models: Mapping[str, str]
    is_base: bool


def check_lineage(models: Models, where: str) -> None:
    """Check that models that are merged with each other share a base; those of nested recipes too.

    Not checked are routes, which merge no weights, and models that a method reorders to match the base, and the result.

    Args:
        models: The opened models of the recipe.
        where: File and key of the recipe, for errors.

    Raises:
        CheckpointError: A model is unrelated to the base, or without a base to the first model. It has the figures.
        Problems: Several are.
    """
    opener, found = models.opener, list[InputError]()
    inner = {reference: opener.recipe(reference) for reference in opener.nested}
    aligned = {reference for reference, recipe in inner.items() if _aligns(recipe)}
    found += _unrelated(models.recipe, models.checkpoints, where, aligned)
    for reference, recipe in inner.items():
        opened = {name: opener.open(name) for name in recipe.references()}
        found += _unrelated(recipe, opened, f"{reference}: ", aligned)
    if found:
        raise in_one(where.partition(": ")[0], found)


def check_pair(base: Checkpoint, model: Checkpoint) -> None:
    """Check that a model is a fine-tune of a base.

    Raises:
        CheckpointError: It is not. The message has the figures.
    """
    (found,) = compare(base, [model]) or (None,)
    if found is not None and not found.related:
        raise _error(Relation(base.reference, {}, True), model.reference, found, (), model.reference)


def relations(recipe: Recipe) -> tuple[Relation, ...]:
    """Return the groups of models that a recipe merges with each other, without duplicates and single models."""
    method = specs().get(recipe.merge_method or "")
    if method is None or method.aligns:  # without a method: a route, or an error that is reported elsewhere
        return ()
    found: dict[tuple[str, frozenset[str]], Relation] = {}
    for block in blocks(recipe):
        relation = _relation(block, method.takes_base)
        if relation.models:
            found.setdefault((relation.base, frozenset(relation.models)), relation)
    return tuple(found.values())


def compare(base: Checkpoint, others: Sequence[Checkpoint]) -> tuple[ModelLineage, ...]:
    """Return the figures and the verdict of every model against the base, from a sample of rows."""
    return lineage(dict(_sampled(base, others)))


def described(found: ModelLineage, others: Sequence[str]) -> str:
    """Return the figures of one model in words.

    Args:
        found: The figures.
        others: References of the other models, in the order of the figures.
    """
    parts = [f"relative change {found.relative['matrices']:.2g}", f"cosine {_shown(found.cosine['matrices'])}"]
    text = f"{', '.join(parts)} (medians over sampled matrices)"
    apart: tuple[Group, ...] = ("embeddings", "norms")
    more = [f"{group} {found.overall[group].relative:.2g}" for group in apart if group in found.overall]
    text += f"; relative change of {' and '.join(more)}" if more else ""
    pairs = [f"{_shown(value)} to that of '{name}'" for name, value in zip(others, found.others, strict=True)]
    return text + (f"; cosine of its change {', '.join(pairs)}" if pairs else "")


def _aligns(recipe: Recipe) -> bool:
    method = specs().get(recipe.merge_method or "")
    return method is not None and method.aligns


def _unrelated(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], where: str, aligned: Set[str]
) -> Iterator[InputError]:
    for relation in relations(recipe):
        names = [name for name in relation.models if name not in aligned]
        if relation.base in aligned or not names:
            continue
        figures = compare(checkpoints[relation.base], [checkpoints[name] for name in names])
        for index, (name, found) in enumerate(zip(names, figures, strict=True)):
            if not found.related:
                others = names[:index] + names[index + 1 :]
                yield _error(relation, name, found, others, join(where, relation.models[name]))


def _error(relation: Relation, name: str, found: ModelLineage, others: Sequence[str], where: str) -> InputError:
    kind = "the base" if relation.is_base else "the first model"
    what = f"'{name}' and {kind} '{relation.base}' are not related: {described(found, others)}"
    allowed = f"Models whose relative change is below {LEAST_CHANGE}, or whose cosine is above {MOST_COSINE}"
    if found.another_base:
        next_step = f"Another model has the same base, which is not '{relation.base}': check base_model. "
    else:
        next_step = (
            "Merges of independently trained models are noise: check that this is the right model, or match its units "
            "with the base's first, by a recipe with rebasin_weights. "
        )
    return CheckpointError(where, what, allowed, f"{next_step}{FLAG} goes on all the same")


def _relation(block: Block, takes_base: bool) -> Relation:
    own = block.base if takes_base else None
    base = block.entries[0].model if own is None else own
    keys: dict[str, str] = {}
    for entry in block.entries:
        keys.setdefault(entry.model, f"{entry.where}.model")
    return Relation(base, {name: key for name, key in keys.items() if name != base}, own is not None)


def _sampled(base: Checkpoint, others: Sequence[Checkpoint]) -> Iterator[tuple[str, tuple[Group, Gram]]]:
    """Yield tensor → group and inner products, for a sample that all models have in the same shape."""
    groups: dict[Group, list[str]] = {"matrices": [], "embeddings": [], "norms": []}
    for tensor in base.shape.tensors:
        shapes = {each.tensors[tensor.name].shape for each in (base, *others) if tensor.name in each.tensors}
        if len(shapes) == 1 and all(tensor.name in each.tensors for each in others):
            groups[_group(tensor, len(shapes.pop()))].append(tensor.name)
    for group, names in groups.items():
        for name in _spread(names, SHARES[group]):
            read = _read(name, base, others)
            if read is not None:
                theta, *rest = read
                yield name, (group, gram(theta, [change(each, theta) for each in rest]))


def _read(name: str, base: Checkpoint, others: Sequence[Checkpoint]) -> list[torch.Tensor] | None:
    """Return a block of rows from the middle of a tensor, from every model; None if one would have to compute it."""
    shape = base.tensors[name].shape
    if not shape or not all(shape):
        return None
    wide = max(1, torch.Size(shape[1:]).numel())
    count = min(shape[0], max(1, MOST_ELEMENTS // wide))
    start = (shape[0] - count) // 2
    read = [rows(each, name, start, start + count, MOST_COMPUTED) for each in (base, *others)]
    known = [each for each in read if each is not None]
    return known if len(known) == len(read) else None


def _group(tensor: TensorSpec, dimensions: int) -> Group:
    if tensor.place in (Place.EMBEDDINGS, Place.HEAD) and dimensions > 1:
        return "embeddings"
    return "matrices" if dimensions > 1 else "norms"


def _spread(names: Sequence[str], most: int) -> list[str]:
    """Return at most `most` names, evenly spaced from the first to the last."""
    if len(names) <= most:
        return list(names)
    place = partial(_place, len(names), most)
    return [names[place(index)] for index in range(most)]


def _place(count: int, most: int, index: int) -> int:
    return round(index * (count - 1) / (most - 1))


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
