"""Search parameters that only affect tensors which no model changes, such as the embeddings of LoRA experts.

A method that takes differences from the base returns the base where all models equal it (a law of every such method,
see `tests/merging`), so these numbers would only be noise. Tensors are recognized as equal if the models take them from
the same checkpoint, as an adapter and its base do; weights are not compared.
"""

from collections.abc import Iterator

from evosearch.errors import RecipeError
from evosearch.materialize.plan import TensorOp
from evosearch.merging.registry import specs
from evosearch.recipe.dual import Dual
from evosearch.search.progress import Watcher
from evosearch.search.space.space import SearchSpace
from evosearch.setup.models import Models

SHOWN = 3  # names in the note


def without_unchanged(space: SearchSpace, models: Models, where: str, watcher: Watcher) -> SearchSpace:
    """Return a space in which numbers that only affect unchanged tensors are fixed at their `init`.

    Args:
        space: The space.
        models: Its models.
        where: Prefix of the key in an error, such as `night.yaml: recipe`.
        watcher: Is told which numbers were fixed.

    Raises:
        RecipeError: No number is left.
    """
    names = unchanged(space, models, where)
    if not names:
        return space
    why = "since no model changes their tensors"
    if len(names) == len(space.dimensions):
        raise RecipeError(where, f"nothing to search: no number has an effect, {why}", next="Search other tensors")
    listed = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    watcher.note(f"{len(names)} of {len(space.dimensions)} numbers are not searched, {why}: {listed}")
    return space.without(names)


def unchanged(space: SearchSpace, models: Models, where: str) -> tuple[str, ...]:
    """Return the numbers of a space that only affect tensors which no model changes."""
    if models.recipe.routing is not None:
        return ()
    methods, used, idle = specs(), set[int](), set[int]()
    for genome in space.corners():
        for op in models.plan(space.with_derivatives(genome), where):
            same = op.base is not None and methods[op.method].takes_base and _same(op, models)
            (idle if same else used).update(_dimensions(op))
    return tuple(space.dimensions[index].name for index in sorted(idle - used))


def _same(op: TensorOp, models: Models) -> bool:
    return len({models.origin(source.reference, source.tensor) for source in op.sources}) == 1


def _dimensions(op: TensorOp) -> Iterator[int]:
    for value in (*op.parameters.shared.values(), *(one for own in op.parameters.own.values() for one in own)):
        if isinstance(value, Dual):
            yield from value.terms
