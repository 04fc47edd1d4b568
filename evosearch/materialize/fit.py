"""Whether the models of a recipe fit each other: tensor by tensor in a merge, layer by layer in a route."""

from collections.abc import Mapping

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError, InputError, in_one
from evosearch.materialize.compatibility import check_compatible
from evosearch.materialize.layout import Output
from evosearch.materialize.plan import donor_of
from evosearch.recipe.schema import Recipe


def check_fit(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], laid: Output, where: str = "recipe") -> None:
    """The preflight of a recipe's models, beside what its layout has found out.

    Args:
        checkpoints: reference → checkpoint, for every model the recipe names.
        laid: the recipe's output.
        where: what to put before the key in an error.

    Raises:
        CheckpointError: two do not fit; the message names both, and of a route the hop that asks for the second.
        Problems: several do not fit the first.
    """
    donor = checkpoints[donor_of(recipe)]
    if recipe.routing is None:
        merged = [checkpoints[reference] for reference in recipe.references()]
        check_compatible(merged, where, same_depth=laid.shape is donor.shape)
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
