"""Compatibility checks of a recipe's models."""

from collections.abc import Mapping

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError, InputError, in_one
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.layout import Output
from evosearch.materialize.plan import donor_of
from evosearch.recipe.schema import Recipe


def check_fit(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], out: Output, where: str = "recipe") -> None:
    """Check that a recipe's models are compatible: tensor by tensor for a merge, layer by layer for a route.

    Args:
        recipe: The recipe.
        checkpoints: Reference → checkpoint, for every model that the recipe names.
        out: The recipe's output.
        where: Prefix of keys in errors.

    Raises:
        CheckpointError: A model does not match the first one. The message names both, and for a route the hop.
        Problems: Several models do not match the first one.
    """
    donor = checkpoints[donor_of(recipe)]
    if recipe.routing is None:
        merged = [checkpoints[reference] for reference in recipe.references()]
        check_compatible(merged, where, same_depth=out.shape is donor.shape)
        return
    hops = [hop.model for hop in recipe.routing.hops]
    problems: list[InputError] = []
    for reference in recipe.references()[1:]:
        place = f"{where}.routing.hops[{hops.index(reference)}].model"
        try:
            check_compatible([donor, checkpoints[reference]], place, same_depth=False, by_layer=False)
        except CheckpointError as error:
            problems.append(error)
    if problems:
        raise in_one(where.partition(": ")[0], problems)
